"""The report as one HTML page that needs no other file, in light and dark."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from megatron_ultralong.evaluation.loss_result import LossResult
from megatron_ultralong.evaluation.passkey_result import PasskeyResult
from megatron_ultralong.evaluation.tables import percent
from megatron_ultralong.evaluation.verdicts import Check

if TYPE_CHECKING:
    from megatron_ultralong.evaluation.report import Report

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2937; --paper: #ffffff; --faint: #6b7280;
  --line: #e5e7eb; --card: #f9fafb; --pass: #166534; --pass-back: #dcfce7;
  --fail: #991b1b; --fail-back: #fee2e2; --beyond: #b91c1c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e7eb; --paper: #111827; --faint: #9ca3af;
  --line: #374151; --card: #1f2937; --pass: #bbf7d0; --pass-back: #14532d;
  --fail: #fecaca; --fail-back: #7f1d1d; --beyond: #fca5a5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 68rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "DejaVu Sans", sans-serif; }
h1 { margin: 0 0 .5rem; font-size: 1.9rem; line-height: 1.2; }
h2 { margin: 2.75rem 0 .75rem; font-size: 1.25rem; }
p { max-width: 46rem; }
.note { color: var(--faint); font-size: .875rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .925rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .75rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { color: var(--faint); font-weight: 600; }
.number { text-align: right; white-space: nowrap; }
tfoot td { font-weight: 600; }
.beyond { color: var(--beyond); }
.verdict { display: inline-block; padding: 0 .6rem; border-radius: 1rem; font-size: .8rem;
  font-weight: 700; }
.pass { color: var(--pass); background: var(--pass-back); }
.fail { color: var(--fail); background: var(--fail-back); }
.two { display: grid; gap: 0 2.5rem; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); }
figure { margin: 0 0 1.25rem; padding: .75rem; background: #ffffff; border-radius: .5rem;
  border: 1px solid var(--line); }
img { display: block; width: 100%; height: auto; }
code { padding: .1rem .35rem; border-radius: .25rem; background: var(--card);
  font: .9em ui-monospace, "DejaVu Sans Mono", monospace; }
"""


def report_page(report: Report, pictures: Mapping[str, bytes]) -> str:
    """The page of ``report``; ``pictures`` holds the PNGs "loss" and "passkey"."""
    before, after = (checkpoint.name for checkpoint in report.loss.checkpoints)
    context = report.loss.checkpoints[0].max_positions
    num_passed = sum(check.passed for check in report.checks)
    body = [
        f"<h1>{escape(report.title)}</h1>",
        f"<p>{escape(report.summary)}</p>",
        f'<p class="note"><code>{escape(report.command)}</code> &middot; '
        f"{escape(report.machine)} &middot; {escape(report.date)}</p>",
        f"<h2>Checks: {num_passed} of {len(report.checks)} passed</h2>",
        _checks(report.checks),
        "<h2>Loss by position</h2>",
        _figure(pictures["loss"], f"Loss by position of {before} and {after}"),
        _losses(report.loss),
        f'<p class="note">Nats per token over {report.loss.num_rows} held-out rows of '
        f"{report.loss.seq_length:,} tokens, ± one standard error from the spread between rows; "
        "perplexity in brackets. Red: beyond the trained positions. The reference is the mean of "
        f"{escape(before)} over its own {context:,} positions.</p>",
        "<h2>Passkey retrieval</h2>",
        _figure(pictures["passkey"], f"Passkey retrieval of {before} and {after}"),
        _passkeys(report.passkey_before, report.passkey_after),
        '<p class="note">Per cent of prompts whose whole answer is the argmax of one forward '
        f"pass, {report.passkey_after.config.num_samples} prompts at every length and depth, in "
        "InfiniteBench's form. In brackets: the worst depth.</p>",
        '<div class="two"><div><h2>Recipe</h2>',
        _pairs((name, str(value)) for name, value in report.settings.items()),
        "</div><div><h2>Wall time</h2>",
        _times(report),
        "<h2>Versions</h2>",
        _pairs(report.versions.items()),
        "</div></div>",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], footer: Sequence[str] = ()) -> str:
    """A table of cells that are HTML already; all columns but the first hold numbers."""

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = ["", *[' class="number"'] * (len(cells) - 1)]
        return (
            "<tr>"
            + "".join(
                f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)
            )
            + "</tr>"
        )

    head = f"<thead>{line('th', header)}</thead>" if header else ""
    body = "".join(line("td", row) for row in rows)
    foot = f"<tfoot>{line('td', footer)}</tfoot>" if footer else ""
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody>{foot}</table></div>'


def _checks(checks: Sequence[Check]) -> str:
    head = "<tr><th></th><th>check</th><th>measured</th><th>asked for</th></tr>"
    rows = []
    for check in checks:
        verdict = "pass" if check.passed else "fail"
        rows.append(
            f'<tr><td><span class="verdict {verdict}">{verdict}</span></td>'
            f"<td>{escape(check.name)}</td><td>{escape(check.figure)}</td>"
            f"<td>{escape(check.bound)}</td></tr>"
        )
    body = "".join(rows)
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _losses(result: LossResult) -> str:
    base = result.checkpoints[0]
    rows = []
    for k, part in enumerate(base.bins):
        cells = [f"{part.start:,} &ndash; {part.stop:,}"]
        for checkpoint in result.checkpoints:
            entry = checkpoint.bins[k]
            if entry.loss is None:
                cells.append("&ndash;")
                continue
            error = "" if entry.standard_error is None else f" ± {entry.standard_error:.3f}"
            text = f"{entry.loss:.3f}{error} ({entry.perplexity:.1f})"
            beyond = part.stop > checkpoint.max_positions
            cells.append(f'<span class="beyond">{text}</span>' if beyond else text)
        rows.append(cells)
    reference = base.mean_loss(0, base.max_positions)
    shown = "&ndash;" if reference is None else f"{reference:.3f}"
    footer = [f"reference: mean inside {base.max_positions:,}", shown]
    footer += [""] * (len(result.checkpoints) - 1)
    names = [
        f"{escape(checkpoint.name)}, trained for {checkpoint.max_positions:,}"
        for checkpoint in result.checkpoints
    ]
    return _table(["positions", *names], rows, footer)


def _passkeys(*results: PasskeyResult) -> str:
    lengths = sorted({length for result in results for length in result.lengths})
    rows = []
    for length in lengths:
        cells = [f"{length:,} tokens"]
        for result in results:
            share = result.accuracy([length])
            if share is None:
                cells.append("&ndash;")
                continue
            worst = min(result.accuracy([length], depth) or 0.0 for depth in result.depths)
            text = f"{percent(share)} % ({percent(worst)} %)"
            beyond = length > result.max_positions
            cells.append(f'<span class="beyond">{text}</span>' if beyond else text)
        rows.append(cells)
    return _table(["length", *(escape(result.checkpoint) for result in results)], rows)


def _times(report: Report) -> str:
    rows = [(escape(step), f"{seconds:.1f} s") for step, seconds in report.wall_times.items()]
    total = f"{sum(report.wall_times.values()):.1f} s, {report.peak_memory_gib:.2f} GiB at the peak"
    return _table((), rows, ("all", total))


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return _table((), [(escape(name), escape(value)) for name, value in pairs])


def _figure(png: bytes, description: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    return f'<figure><img alt="{escape(description)}" src="data:image/png;base64,{data}"></figure>'
