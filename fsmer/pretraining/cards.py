"""Model cards in Hugging Face format: what weights were made from, and what they are and are not for."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fsmer.backbones.base import Backbone, model_hash
from fsmer.io import write_text
from fsmer.version import __version__

__all__ = ["MISUSE", "CardText", "write_model_card"]

MISUSE = """Facial movement is not emotion: a micro-expression says that muscles moved, not what a person feels,
thinks or hides. Do not use this model to detect lies, to screen, hire, grade, diagnose, police or profile people,
to watch anyone without their informed consent, or to take any decision about a person. Reading emotions at work and
in education is prohibited by law in some places (in the European Union by Article 5 of the AI Act)."""


@dataclass(frozen=True)
class CardText:
    """The words of one model's card.

    Parameters
    ----------
    summary : str
        What the network is and what it was made from.
    use : str
        Lines of Python.
    limits : str
        What it cannot do and what was not tested, as Markdown.
    command : str
        The shell command that makes such weights.
    tags : tuple of str
        Hub tags beside ``micro-expression-recognition``.
    licence : str
        Of the weights, as the hub writes it.
    """

    summary: str
    use: str
    limits: str
    command: str
    tags: tuple[str, ...] = ()
    licence: str = "apache-2.0"


def write_model_card(
    folder: Path, backbone: Backbone, *, text: CardText, recipe: Mapping[str, Any], seed: int, seconds: float
) -> Path:
    """Write ``README.md`` beside the weights.

    Parameters
    ----------
    folder : Path
        The weights folder.
    backbone : Backbone
        The trained network.
    text : CardText
        What is said of it.
    recipe : mapping
        Hyper-parameters of the training.
    seed : int
        Its seed.
    seconds : float
        How long it took.
    """
    tags = "\n".join(f"- {tag}" for tag in ("micro-expression-recognition", *text.tags))
    rows = "\n".join(f"| {name} | {value} |" for name, value in recipe.items())
    return write_text(
        folder / "README.md",
        f"""---
license: {text.licence}
library_name: fsmer
tags:
{tags}
pipeline_tag: image-classification
---

# {backbone.name}

{text.summary}

## Use

```python
{text.use}
```

## What it is for, and what it must not be used for

For research on micro-expression recognition, and for building recognizers that people consent to and that their makers
evaluate on their own labelled clips.

{MISUSE}

## Limits

{text.limits}

## Training

`{text.command}`: {seconds / 60:.0f} minutes on {torch.get_num_threads()} threads
(fsmer {__version__}, torch {torch.__version__.split("+")[0]}, numpy {np.__version__}, Python
{platform.python_version()}).

| setting | value |
|---|---|
{rows}
| seed | {seed} |
| hash of the weights | {model_hash(backbone)} |
""",
    )
