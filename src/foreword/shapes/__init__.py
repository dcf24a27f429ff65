"""Rows of language modelling in every shape that fine-tuning tools accept."""

from __future__ import annotations

from foreword.shapes.forms import Conversation, Form, Misfit, Pair, Plain
from foreword.shapes.kinds import SHAPES, Named, Shape
from foreword.shapes.recognise import misfit, of_task, recognise, summary

__all__ = [
    "SHAPES",
    "Conversation",
    "Form",
    "Misfit",
    "Named",
    "Pair",
    "Plain",
    "Shape",
    "misfit",
    "of_task",
    "recognise",
    "summary",
]
