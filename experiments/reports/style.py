"""How a report looks: light and dark, on paper, from 320 px of width."""

from typing import Final

STYLE: Final = """
:root{--paper:#fff;--ink:#1d2430;--faint:#5b6575;--line:#d9dee6;--fill:#f4f6f9;--blue:#1f6fb4;
--orange:#c65d00;--grey:#8a93a1;--red:#b3261e;--mark:#fff4d6}
@media (prefers-color-scheme:dark){:root{--paper:#14181f;--ink:#e6e9ee;--faint:#a2acba;
--line:#343c48;--fill:#1d232c;--blue:#6cb4f0;--orange:#f2a154;--grey:#8a93a1;--red:#f2857d;
--mark:#3a3115}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1000px;margin:0 auto;padding:24px 16px 48px;overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .5rem}
h2{font-size:1.2rem;margin:2.2rem 0 .6rem;padding-bottom:.25rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:1.4rem 0 .4rem}
p{margin:.5rem 0;max-width:75ch}
code,pre{font:.875em/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
code{background:var(--fill);border-radius:3px;padding:.1em .3em}
pre{background:var(--fill);border:1px solid var(--line);border-radius:6px;padding:.6rem .75rem;
margin:.5rem 0;white-space:pre-wrap;overflow-wrap:anywhere}
.stands-out{background:var(--mark);border-left:4px solid var(--orange);padding:.5rem .75rem}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;
margin:1rem 0}
.figures div{background:var(--fill);border:1px solid var(--line);border-radius:8px;
padding:.6rem .75rem}
dt{color:var(--faint);font-size:.8rem}
dd{margin:0;font-size:1.4rem;font-weight:600;line-height:1.3}
small{display:block;color:var(--faint);font-size:.8rem;font-weight:400}
.wide{overflow-x:auto;margin:.5rem 0}
table{border-collapse:collapse;font-size:.9rem;overflow-wrap:normal}
th,td{text-align:left;vertical-align:top;padding:.35rem .7rem .35rem 0;
border-bottom:1px solid var(--line);max-width:32rem}
th{color:var(--faint);font-weight:600}
th,td{min-width:3.5rem}
.pairs td:first-child{color:var(--faint);min-width:8rem}
.pairs td{overflow-wrap:anywhere}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.pictures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));gap:20px}
figure{margin:.5rem 0;max-width:480px}
figcaption{color:var(--faint);font-size:.85rem}
svg{display:block;width:100%;height:auto;color:var(--ink)}
svg text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif;fill:var(--ink)}
svg .t{fill:var(--faint);font-size:11px}
svg .g{stroke:var(--line);stroke-width:1;fill:none}
svg .b{fill:var(--blue)}svg .o{fill:var(--orange);stroke:var(--ink);stroke-width:.7}
svg .p{stroke:var(--grey);stroke-width:1.3;fill:none}svg .d{fill:var(--grey)}
svg .l{stroke:var(--orange);stroke-width:2;fill:none}
svg .i{stroke:var(--blue);stroke-width:2;fill:none}
svg .r{stroke:var(--red);stroke-width:1;stroke-dasharray:4 3;fill:none}
svg .h{fill:var(--paper);stroke:var(--orange);stroke-width:2}
.hint{border-left:3px solid var(--blue);padding:.1rem 0 .1rem .8rem;margin:.9rem 0;
break-inside:avoid}
.hint p{margin:.2rem 0}
.about{background:var(--fill);border:1px solid var(--line);border-radius:10px;padding:0 .5rem;
font-size:.8rem;color:var(--faint)}
footer{margin-top:2.5rem;padding-top:.6rem;border-top:1px solid var(--line);color:var(--faint);
font-size:.85rem}
@media print{:root{--paper:#fff;--ink:#000;--faint:#444;--line:#bbb;--fill:#f4f4f4;--blue:#1f6fb4;
--orange:#c65d00;--grey:#777;--red:#b3261e;--mark:#f4f4f4}
body{font-size:11pt}main{max-width:none;padding:0}.wide{overflow:visible}
figure,tr,pre,.figures div{break-inside:avoid}h2,h3{break-after:avoid}}
"""
