"""Plain `nn.Module`s: the two towers with their temperature."""
