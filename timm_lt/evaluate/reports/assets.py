"""Style sheet and script of the HTML pages; a page holds both, so that it needs no other file."""

CSS = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #5b6770; --line: #e0e4e8; --pale: #f5f7f9; --paper: #fff;
  --deep: #17375e; --middle: #2f8f9d; --warm: #f2a65a; --note: #fdf6ed; --heat: 23 55 94; --mark: #fff;
  --shade: rgb(0 0 0/.22); }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #a2abb4; --line: #2f363d; --pale: #1d2329;
  --paper: #15191e; --deep: #7fb0ea; --middle: #4fb3c1; --note: #2b2419; --heat: 127 176 234;
  --mark: #10141a; --shade: rgb(255 255 255/.3); } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Noto Sans CJK SC",
  sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto; max-width: 1080px;
  padding: 32px 24px 64px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 40px 0 12px; padding-bottom: 6px; border-bottom: 2px solid var(--deep); }
h3 { font-size: 14px; margin: 20px 0 6px; }
a { color: var(--deep); } p.lead { color: var(--soft); margin: 0 0 12px; overflow-wrap: anywhere; }
p.files a { margin-right: 14px; white-space: nowrap; }
.tiles { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 12px; margin: 20px 0; }
.tile { background: var(--pale); border-top: 4px solid var(--deep); padding: 10px 14px 12px; }
.tile.medium { border-color: var(--middle); } .tile.few { border-color: var(--warm); }
.tile.other { border-color: #8b929a; }
.tile b { display: block; font-size: 25px; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span, .tile small { color: var(--soft); font-size: 12.5px; display: block; overflow-wrap: anywhere; }
/* a shadow on the side where columns are hidden; paper that scrolls along covers it where none are */
.scroll { overflow-x: auto; background: linear-gradient(to right, var(--paper) 40%, transparent) left/48px 100%,
  linear-gradient(to left, var(--paper) 40%, transparent) right/48px 100%,
  linear-gradient(to right, var(--shade), transparent) left/16px 100%,
  linear-gradient(to left, var(--shade), transparent) right/16px 100%;
  background-repeat: no-repeat; background-attachment: local, local, scroll, scroll; }
.scroll th:first-child, .scroll td:first-child { position: sticky; left: 0; z-index: 1; background: var(--paper); }
.scroll td.text { min-width: 170px; }
.tall { max-height: 560px; overflow: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--soft); border-bottom: 2px solid var(--ink); }
.tall th { position: sticky; top: 0; background: var(--paper); }
td { font-variant-numeric: tabular-nums; white-space: nowrap; }
th:first-child, td:first-child, td.text, th.text { text-align: left; white-space: normal; overflow-wrap: break-word; }
table.text th { text-align: left; } table.text td.text { min-width: 130px; overflow-wrap: anywhere; }
table.even { table-layout: fixed; } table.even td, table.even th { text-align: left; white-space: normal; }
table.classes td:first-child { min-width: 110px; overflow-wrap: anywhere; }
td.best { font-weight: 700; } td small { color: var(--soft); display: block; }
.absent { color: #8b929a; font-style: italic; }
table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
table.facts td:first-child { width: 230px; color: var(--soft); }
table.heat { width: auto; } table.heat td { text-align: center; min-width: 46px; border: 2px solid var(--paper); }
table.heat th, table.heat td:first-child { border: 0; }
table.heat th { text-align: center; vertical-align: bottom; min-width: 46px; }
table.names th span { writing-mode: vertical-rl; text-orientation: sideways; transform: rotate(180deg);
  white-space: nowrap; }
table.heat td.on { color: var(--mark); } table.heat td.own { font-weight: 700; }
table.heat td:first-child { min-width: 90px; text-align: right; overflow-wrap: anywhere; }
table.heat td.zero { color: var(--soft); }
th[aria-sort] { cursor: pointer; user-select: none; } th[aria-sort]:hover { color: var(--ink); }
th[aria-sort=ascending]::after { content: " \\25B2"; font-size: 10px; }
th[aria-sort=descending]::after { content: " \\25BC"; font-size: 10px; }
input[type=search] { font: inherit; color: var(--ink); background: var(--pale); border: 1px solid var(--line);
  border-radius: 4px; padding: 5px 10px; width: 100%; max-width: 320px; margin: 0 0 10px; }
figure { margin: 20px 0 8px; } figure img { max-width: 100%; height: auto; display: block; }
figure.full img { width: 100%; }
figcaption { color: var(--soft); font-size: 13px; max-width: 75ch; margin-top: 4px; }
.pair { display: flex; flex-wrap: wrap; gap: 24px; align-items: flex-start; }
.pair > * { flex: 1 1 380px; min-width: 0; }
.bar { display: block; height: 8px; background: var(--line); width: 110px; float: right; margin: 7px 0 0 10px; }
.bar i { display: block; height: 8px; background: var(--deep); }
.bar.medium i { background: var(--middle); } .bar.few i { background: var(--warm); }
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)); gap: 12px; }
.mistakes figure { margin: 0; } .mistakes img { width: 100%; aspect-ratio: 1; object-fit: contain;
  background: var(--pale); image-rendering: auto; }
.mistakes figcaption { font-size: 12.5px; line-height: 1.35; overflow-wrap: anywhere; }
.mistakes b { color: var(--ink); font-weight: 600; }
.note { border-left: 4px solid var(--warm); background: var(--note); padding: 8px 14px; margin: 12px 0; }
details { margin: 12px 0; } summary { cursor: pointer; color: var(--deep); font-weight: 600; }
.rules td, .rules th { text-align: left; white-space: normal; }
.rules code { font-size: .9em; display: inline-block; max-width: 100%; overflow-wrap: anywhere; }
footer { color: var(--soft); font-size: 13px; margin-top: 48px; border-top: 1px solid var(--line); padding-top: 12px; }
@media (max-width: 640px) {
  body { padding: 20px 14px 40px; } .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  table { font-size: 12.5px; } th, td { padding: 5px 4px; } table.classes td:first-child { min-width: 84px; }
  .bar { display: none; } table.facts td:first-child { width: 40%; }
  .scroll td[colspan] span { display: block; max-width: calc(100vw - 150px); }
}
@media print { body { padding: 0; } h2 { break-after: avoid; } figure, .tiles { break-inside: avoid; }
  .tall { max-height: none; } input[type=search] { display: none; } }
"""

SCRIPT = """
for (const table of document.querySelectorAll('table.sortable')) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const key = (row, i) => row.cells[i].dataset.v ?? row.cells[i].textContent;
  const compare = (a, b) => a === '' || b === '' || isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
  heads.forEach((head, i) => {
    head.setAttribute('aria-sort', 'none');
    head.tabIndex = 0;
    head.onclick = () => {
      const up = head.getAttribute('aria-sort') !== 'ascending';
      heads.forEach(h => h.setAttribute('aria-sort', h !== head ? 'none' : up ? 'ascending' : 'descending'));
      const known = [], missing = [];
      for (const row of body.rows) (key(row, i) === '' ? missing : known).push(row);
      known.sort((a, b) => (up ? 1 : -1) * compare(key(a, i), key(b, i)));
      body.append(...known, ...missing);
    };
    head.onkeydown = event => { if (event.key === 'Enter') head.onclick(); };
  });
}
for (const field of document.querySelectorAll('input[type=search]')) {
  field.oninput = () => {
    const wanted = field.value.trim().toLowerCase();
    for (const row of document.getElementById(field.dataset.table).tBodies[0].rows)
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
  };
}
"""
