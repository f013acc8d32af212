r"""The number that an answer comes to, as written by people, calculators and in LaTeX.

Equal are 3500, 3,500, 3 500, 3.5e3, 3.5 thousand and $3500.00; 1/2, 0.5, ½, 0,5 and \frac{1}{2}; 12, 12 cm^2 and 12%.
A comma before three digits parts thousands, before others decimals. What is not one number, such as a range, a time, a
date or a sum (3-5, 3 to 5, 10:30, 2024-01-15, 3 + 5, 2 hours 30 minutes), equals the same alone. What is not the value
of what it stands in, as in x + 5, 2π or a root, is none: better that a right answer is missed than that two different
ones are taken for equal.
"""

from __future__ import annotations

import unicodedata
from fractions import Fraction

import regex
from regex import Match

#: LaTeX and typography as plain text; in this order.
_PLAIN = [
    (regex.compile(pattern), by)
    for pattern, by in (
        (r"\\(?:left|right|displaystyle|!)", ""),
        (r"\{,\}", ","),
        (r"\\\{", "("),
        (r"\\\}", ")"),
        (r"(?<=\d)\s*[~～〜]\s*(?=\d)", "-"),
        (r"\\[,;: ]|~", " "),
        (r"\^\s*\{?\s*\\circ\s*\}?", "°"),
        (r"\\(?:text|mathrm|mathbf|textbf|mbox)\s*\{([^{}]*)\}", r" \1 "),
        (r"\\(?:times|cdot)\b", "×"),
        (r"\\div\b", "÷"),
        (r"\\pm\b", "±"),
        (r"\\pi(?![a-z])", "π"),
        (r"\\sqrt\s*(?:\[[^]]*\])?", "√"),
        (r"(?<=\d)(?=\\[dtc]?frac)", " "),
        (r"\\[dtc]?frac\s*(\d)\s*(\d)", r"\1/\2"),
        (r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2"),
        (r"\^\{\s*([-+]?\d+)\s*\}", r"^\1"),
        (r"\^\{", "^("),
        (r"(?<!\w)\{([^{}]*[,;][^{}]*)\}", r"(\1)"),
        (r"[{}\\]", ""),
        (r"(?i)(?<=\d[ ]?)([ap])\.?m\b\.?", lambda m: m[1].lower() + "m"),
        (r"(?<![A-Za-z])([kcdmnμµ]?m|ft|in|yd|mi|s)([23])(?!\d)", r"\1^\2"),  # m2 for square metres
        (r"[⁺⁻⁰¹²³⁴-⁹]+", lambda m: "^" + unicodedata.normalize("NFKC", m[0])),
        (r"(?<=\d)(?=[¼-¾⅐-⅞])", " "),
        (r"[¼-¾⅐-⅞]", lambda m: unicodedata.normalize("NFKC", m[0])),
    )
]
_CHARACTERS = str.maketrans("‐‑‒–−⁄∕٫٬’⋅∗∶", "-----//.,'·*:")
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "k": 3, "K": 3, "M": 6, "B": 9}
_SCALES |= {"bn": 9, "百": 2, "千": 3, "万": 4, "萬": 4, "亿": 8, "億": 8}
_MOST_DIGITS = 300

_SIGN = r"(?:(?<![\w)\]%°])[-+±]|(?<=[=≈(:][ ]*)[-+±][ ])"
_DIGITS = r"(?:[1-9]\d{0,2}(?:[ ]\d{3})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,'_]\d+)*|(?<![\w.])\.\d+)"
_MONEY = r"(?:[$€£¥₹][ ]?)?"
_THOUSANDS = r"[1-9]\d{0,2}(?:,\d{3})+"
_SCALE = r"(?P<scale>[ ]?(?:hundred|thousand|million|billion|trillion)(?=s?\b)|(?:bn|[kKMB])\b|[百千万萬亿億]+)?"
_NUMBER = rf"""
    (?P<sign>{_SIGN})? {_MONEY} (?P<sign>{_SIGN})?
    (?P<digits>{_DIGITS})
    (?:[eE](?P<exponent>[-+]?\d+)(?!\w))?
    (?:[ ]?[×x*·][ ]?10\^(?P<exponent>[-+]?\d+) | \^(?P<power>[-+]?\d+))?
    {_SCALE}
    (?P<half>[ ]?[ap]m\b)?
"""
#: What joins numbers to something that is not one of them.
_JOINT = r"""
    %?(?:[ ]?[-+/÷×x*·±][ ]?|:|[ ]:[ ]|[ ]to[ ])
  | [ ]?(?:h|hrs?|hours?|mins?|minutes?|ft|feet|foot|days?|weeks?|months?|years?|lbs?|pounds?)(?:[ ]and)?[ ]
  | (?<=[百千万萬亿億])
"""
#: Around a number that is not the value of what it stands in.
_BEFORE = r"""
    √[(]? | (?<=[\w)])[ ]?/[ ]? | (?<=(?<![A-Za-z])[A-Za-z])[ ]?[-+*×·÷][ ]?
  | (?<=\b(?:log(?:_\w+)?|ln|exp|sin|cos|tan)[ ]?[(]?[ ]?)
"""
_BEHIND = r"[ ]?π|[ ]?pi\b|[xyzie]\b|[ ]?/[ ]?(?:[abnxyz]\b|[(√π])|√|‰|\^(?!th|st|nd|rd)"
_ONE = regex.compile(_NUMBER, regex.VERBOSE)
_ANY = regex.compile(
    rf"""
    (?=[\d.^_(\[√$€£¥₹±+/×*·÷-]|[ ][-+*/×·÷])  # most texts are letters
    (?:
    (?P<none>\^[(]?[-+]?\d[\d./]* | (?<=[A-Za-z])_\d+)  # an exponent of what is no number, an index
    | (?P<written>
        [(\[][ ]*(?!{_THOUSANDS}(?:\.\d+)?[ ]*[)\]]) [-+]?\d[\d./]*(?:[ ]*[,;][ ]*[-+]?\d[\d./]*)+ [ ]*[)\]]
      )
    | (?:
        (?P<mixed>
          {_SIGN}?{_MONEY} (?P<whole>{_THOUSANDS}|\d+)[ ](?P<over>\d+)/(?P<under>\d+)(?![\d/^]) {_SCALE}
        )
      | (?P<odd>0[xX][\dA-Fa-f]+)
      | (?P<odd>{_BEFORE})? {_NUMBER} (?:(?:{_JOINT}){_NUMBER})*
      )
      (?P<odd>(?={_BEHIND}))?
    )
    """,
    regex.VERBOSE,
)
#: Right before a number; "#### Step 1" and "#### 1. Add" are headings.
_MARK = regex.compile(r"####\s*+(?!\d+[.):][ ]\S)(?=[^\w\n]{0,20}\d)")

#: How the digits of a number may be parted, and what becomes of the signs; the first that fits counts.
_PARTED = [
    (regex.compile(pattern), str.maketrans(dict(zip(signs, become, strict=True))))
    for pattern, signs, become in (
        (r"\d*\.?\d+", "", ()),
        (rf"{_THOUSANDS}(?:\.\d+)?", ",", ("",)),
        (r"[1-9]\d?(?:,\d\d)+,\d{3}(?:\.\d+)?", ",", ("",)),
        (r"[1-9]\d{0,2}(?:\.\d{3})+,\d+|[1-9]\d{0,2}(?:\.\d{3}){2,}", ".,", ("", ".")),
        (r"[1-9]\d{0,2}([ '_])\d{3}(?:\1\d{3})*(?:[.,]\d+)?|\d+,\d+", " '_,", ("", "", "", ".")),
    )
]


def number_of(text: str) -> Fraction | str | None:
    r"""What an answer comes to: what its last ``\boxed{}`` holds, or the first number behind ``####``, or its last.

    Returns:
        The number; as it is written what is not one number; None where there is none.
    """
    if (start := text.rfind(r"\boxed")) >= 0:
        return _value(_found(_braced(text[start:]))[-1:])
    if (mark := _MARK.search(text)) is not None:
        return _value(_found(text[mark.end() :])[:1])
    return _value(_found(text)[-1:])


def _braced(text: str) -> str:
    """What the first braces hold; nothing where they are not closed, since more may have been meant to come."""
    depth = 0
    for at, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0 and character == "}":
            return text[text.index("{") : at]
    return ""


def _found(text: str) -> list[Match[str]]:
    for pattern, by in _PLAIN:
        text = pattern.sub(by, text)
    text = unicodedata.normalize("NFKC", text).translate(_CHARACTERS)
    return [match for match in _ANY.finditer(text) if match["none"] is None]


def _value(found: list[Match[str]]) -> Fraction | str | None:
    """What the one match comes to, if there is one."""
    if not found or found[0]["odd"] is not None:
        return None
    [match] = found
    written = "".join(character for character in match[0].replace(" to ", "-") if character not in " $€£¥₹%")
    if match["mixed"]:
        return _mixed(match) or written
    parts = [] if match["written"] else list(_ONE.finditer(match.string, *match.span()))
    values = [_one(part) for part in parts]
    if len(parts) == 1 and values[0] is not None:
        return values[0]
    if len(parts) == 2 and match.string[parts[0].end() : parts[1].start()].strip() in ("/", "÷"):
        over, under = values
        if over is not None and under and not parts[1]["scale"]:
            return over / under
    return written


def _mixed(match: Match[str]) -> Fraction | None:
    """1 1/2; but 1 3/2 is none."""
    digits = [match["whole"].replace(",", ""), match["over"], match["under"]]
    if max(map(len, digits)) > _MOST_DIGITS:
        return None
    whole, over, under = map(int, digits)
    if over >= under:
        return None
    return (whole + Fraction(over, under)) * _scale(match) * (-1 if match[0].startswith("-") else 1)


def _one(match: Match[str]) -> Fraction | None:
    """The number that a match of `_ONE` is; None where it has to be compared as it is written."""
    sign, exponent, power = match["sign"] or "+", match["exponent"] or "0", match["power"] or "1"
    digits = next((match["digits"].translate(mend) for form, mend in _PARTED if form.fullmatch(match["digits"])), None)
    if digits is None or len(digits) > _MOST_DIGITS or match["half"] or sign[0] == "±":
        return None
    if max(abs(int(exponent[:9])), abs(int(power[:9]))) > _MOST_DIGITS:
        return None
    value = Fraction(digits)
    if int(power) < 0 and not value:
        return None
    return value ** int(power) * Fraction(10) ** int(exponent) * _scale(match) * (-1 if sign[0] == "-" else 1)


def _scale(match: Match[str]) -> int:
    """What a word behind a number, such as thousand, multiplies it by."""
    scale = (match["scale"] or "").strip()
    return 10 ** (_SCALES[scale] if scale in _SCALES else sum(_SCALES[character] for character in scale))
