r"""The letter of a multiple-choice answer: 1 where it is that of the reference.

It is read from "B", "(B)", "B. heat", "The answer is B", "Answer: (B)", ``\boxed{B}`` and a letter that stands alone on
its line. What is said first counts; an answer from which no letter can be read scores 0. A capital A or I with a word
behind it is taken for one: "A dog" is no answer.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from malora_cli.evals.metrics._base import TextMetric

#: Marks that put emphasis on a letter or set it as a formula.
_EMPHASIS = re.compile(r"[*`$\"“”]|\\(?:text|textbf|mathrm|mathbf)(?=\s*\{)")
#: What comes behind an A that is no article.
_GOES_ON = r"(?=\s+(?:is|because|since|as)\b)"
#: What comes behind a letter that is not, or not alone, the answer.
_DENIED = (
    r"(?![\s)]*(?:(?:is|was|seems|looks|would be)\s+(?:not|wrong|incorrect|false)\b"
    r"|(?:or|and|/|&|,)\s*(?:option\s)?\(?(?:[B-HJ-Z](?![\w'’])|A\s*$|A[.)])))"
)
_ENDS = r"(?=\s*[)\]]|\s*[.,;:!]?\s*$|[.,;:]\s|\s*\n)"
_BOXED = re.compile(r"\\boxed\s*\{[\s{(]*([A-Za-z])[\s)}]*\}")
_LISTED = re.compile(r"\(?[A-Z][.):]\s.*\n\s*\(?[A-Z][.):]\s")
_FIRST = re.compile(
    rf"[(\[]?([A-Z])(?:[)\]]|[.:](?=\s|$)|(?=[,;]\s)|\s+[-–—]\s|\s*$|\s*\n|{_GOES_ON}){_DENIED}"
    rf"|([B-HJ-Z])(?=\s){_DENIED}|[(\[]?([a-z])[)\]]"
)
_SAID = re.compile(
    r"(?:\b(?i:answer|antwort|réponse|respuesta|risposta|resposta|ответ|(?:correct|right|best) (?:option|choice)"
    r"|(?:option|choice)(?=\s*[:=])|choose|pick|select|go with)\b|答案|选项|選項|[选選])"
    r"(?i:\s*(?:(?:is|would be|should be|ist|est|es|è|é)\b|[是为為]))?\s*[:=-]*\s*(?i:(?:option|choice)\s+)?[(\[]?"
    rf"(?:([A-Z])(?:{_ENDS}|{_GOES_ON}){_DENIED}|([B-HJ-Z])(?![\w'’]){_DENIED}|([b-hj-z]){_ENDS}|(?<=[(\[])([a-z])[)\]])"
)
_ALONE = re.compile(r"^[ (\[]*([A-Za-z])[ )\]]*[.:]?[ ]*$", re.MULTILINE)
_BRACKETED = re.compile(r"[(\[]\s*([A-Za-z])\s*[)\]]")


class Choice(TextMetric):
    """The letter that is read from an answer, such as B from "(B)", "B. heat" and "The answer is B"."""

    name: Literal["choice"] = "choice"

    def score(self, prediction: str, reference: str) -> float:
        """Whether both give the same letter."""
        letter = _letter(prediction)
        return float(letter is not None and letter == _letter(reference))

    def reads(self, reference: str) -> bool:
        """Whether it gives a letter."""
        return _letter(reference) is not None


def _letter(text: str) -> str | None:
    text = _EMPHASIS.sub("", unicodedata.normalize("NFKC", text)).strip()
    first = None if _LISTED.match(text) else _FIRST.match(text)  # some repeat all choices before they choose
    found = _BOXED.search(text) or first or _SAID.search(text) or _ALONE.search(text)
    if found is not None:
        return next(letter for letter in found.groups() if letter).upper()
    bracketed = {letter.upper() for letter in _BRACKETED.findall(text)}
    return bracketed.pop() if len(bracketed) == 1 else None


METRIC = Choice
