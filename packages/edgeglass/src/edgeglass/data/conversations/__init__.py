"""Questions and answers of any format, in splits: JSONL, instruction pairs, VQAv2, GQA, TextVQA, parquet, captions.

from edgeglass.config import QuestionDataConfig
from edgeglass.data.conversations import read_conversations

found = read_conversations(QuestionDataConfig(root="questions/"))      # the format is detected from the files
found.splits["train"][0].turns[0].question
"""

from edgeglass.data.conversations.check import QuestionReport, check_conversations
from edgeglass.data.conversations.formats import FORMATS, find_question_format, holds_questions
from edgeglass.data.conversations.loading import Conversations, read_conversations
from edgeglass.data.records import Conversation, Turn

__all__ = [
    "FORMATS",
    "Conversation",
    "Conversations",
    "QuestionReport",
    "Turn",
    "check_conversations",
    "find_question_format",
    "holds_questions",
    "read_conversations",
]
