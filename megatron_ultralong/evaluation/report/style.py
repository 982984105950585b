"""The page's style, in light and dark."""

STYLE = """
:root { color-scheme: light dark; --ink: #1f2937; --paper: #ffffff; --faint: #6b7280;
  --line: #e5e7eb; --card: #f9fafb; --pass: #166534; --pass-back: #dcfce7;
  --fail: #991b1b; --fail-back: #fee2e2; --beyond: #b91c1c; --best-back: #dbeafe;
  --notice: #92400e; --notice-back: #fef3c7; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e7eb; --paper: #111827; --faint: #9ca3af;
  --line: #374151; --card: #1f2937; --pass: #bbf7d0; --pass-back: #14532d;
  --fail: #fecaca; --fail-back: #7f1d1d; --beyond: #fca5a5; --best-back: #1e3a8a;
  --notice: #fde68a; --notice-back: #451a03; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 68rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "DejaVu Sans", sans-serif; }
h1 { margin: 0 0 .5rem; font-size: 1.9rem; line-height: 1.2; }
h2 { margin: 2.75rem 0 .75rem; font-size: 1.25rem; }
h3 { margin: 1.5rem 0 .5rem; font-size: 1rem; }
p { max-width: 46rem; }
nav ul { margin: 0; padding: 0; list-style: none; display: flex; flex-wrap: wrap;
  gap: .25rem 1.25rem; }
a { color: inherit; }
.notices { margin: 1rem 0; padding: .75rem 1rem .75rem 2rem; border-radius: .5rem;
  color: var(--notice); background: var(--notice-back); font-size: .925rem;
  overflow-wrap: anywhere; }
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
.best { padding: .05rem .3rem; border-radius: .25rem; background: var(--best-back);
  font-weight: 700; }
.conditions td:first-child { white-space: nowrap; }
.conditions td { overflow-wrap: anywhere; min-width: 8rem; }
summary { cursor: pointer; color: var(--faint); font-size: .925rem; }
.verdict { display: inline-block; padding: 0 .6rem; border-radius: 1rem; font-size: .8rem;
  font-weight: 700; }
.pass { color: var(--pass); background: var(--pass-back); }
.fail { color: var(--fail); background: var(--fail-back); }
.two { display: grid; gap: 0 2.5rem; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); }
figure { margin: 0 0 1.25rem; padding: .75rem; background: #ffffff; border-radius: .5rem;
  border: 1px solid var(--line); }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
code { padding: .1rem .35rem; border-radius: .25rem; background: var(--card);
  font: .9em ui-monospace, "DejaVu Sans Mono", monospace; }
"""
