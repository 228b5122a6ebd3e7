"""A trained language model that sees: ask it, chat with it, save it, merge its adapters."""
