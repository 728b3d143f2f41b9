"""Plan a training before it is paid for: parameters, memory of a card, FLOPs, days."""

from .count import Count, count
from .fake import fake
from .outline import fake_clip, outline
from .plan import CARDS, Card, Memory, Plan, plan
from .shapes import Shapes

__all__ = ["CARDS", "Card", "Count", "Memory", "Plan", "Shapes", "count", "fake", "fake_clip", "outline", "plan"]
