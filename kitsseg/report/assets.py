"""Style and script of the report page."""

__all__ = ["SORT_SCRIPT", "STYLE"]

# Truth is blue and solid, prediction orange and dashed, kidney the deeper and tumor the lighter tone: the
# pairs stay apart for color-blind readers and in gray print.
STYLE = """
:root{--page:#f6f7f9;--card:#fff;--ink:#1b2430;--soft:#5b6675;--line:#dde2e8;--a:#1f6feb;--b:#c2570c;
--warn:#fff3d6;--warn-ink:#6b4700;--bar:#dbe8fd;color-scheme:light dark}
@media (prefers-color-scheme:dark){:root{--page:#11151b;--card:#1a2029;--ink:#e6eaf0;--soft:#9aa6b5;
--line:#303946;
--a:#6ea8ff;--b:#ff9d4d;--warn:#3a2e12;--warn-ink:#ffdc8a;--bar:#22385c}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
header,main,footer{max-width:1120px;margin:0 auto;padding:0 24px}
header{padding-top:32px}
footer{padding-top:8px;padding-bottom:40px;color:var(--soft);font-size:13px}
h1{font-size:32px;line-height:1.2;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:19px;margin:0 0 12px}
p{margin:0 0 10px}
small{color:var(--soft);font-size:13px;font-weight:400}
.kicker{color:var(--soft);margin:0}
.paper{color:var(--soft);margin-bottom:16px}
.banner{border:1px solid var(--line);border-radius:8px;padding:8px 14px;margin:0 0 8px;
background:var(--card);
overflow-wrap:anywhere}
.banner.phantom{background:var(--warn);color:var(--warn-ink);border-color:transparent;font-weight:600}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:20px 24px;
margin:16px 0}
.aside{color:var(--soft);font-size:14px;max-width:105ch}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:12px;margin-bottom:14px}
.tile{border:1px solid var(--line);border-radius:10px;padding:12px 16px}
.tile p{margin:0;color:var(--soft);font-size:13px}
.tile p:first-child{color:var(--ink);font-size:15px;font-weight:600}
.tile b{font-size:34px;line-height:1.25;font-variant-numeric:tabular-nums}
table.sortable{font-size:13px}
.sortable th,.sortable td{padding:6px 7px}
.scroll{overflow-x:auto;margin-bottom:10px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}
table.narrow{width:auto;min-width:320px}
th,td{padding:6px 10px;text-align:right;border-bottom:1px solid var(--line)}
th:first-child{text-align:left}
thead th{color:var(--soft);font-weight:600;font-size:13px;line-height:1.3;vertical-align:bottom}
tr.groups th{text-align:center;padding-bottom:0;border:0}
tbody th{font-weight:500;white-space:nowrap}
tbody th small{display:block}
td.bar{background:linear-gradient(90deg,var(--bar) calc(var(--v)*100%),transparent 0)}
th button{font:inherit;color:inherit;background:none;border:0;padding:0;text-align:inherit;cursor:pointer}
th button:hover,th button:focus-visible{text-decoration:underline}
th[aria-sort=ascending] button::after{content:" \\2191"}
th[aria-sort=descending] button::after{content:" \\2193"}
dl{display:grid;grid-template-columns:minmax(140px,max-content) 1fr;gap:4px 24px;margin:0;font-size:14px}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
.chart{width:100%;max-width:860px;height:auto;display:block}
.chart text{font-size:12px;fill:var(--soft)}
.chart path{fill:none;stroke-width:1}
.chart .grid{stroke:var(--line)}
.chart .line{stroke-width:2;stroke-linejoin:round}
.chart .line.a{stroke:var(--a)}.chart .line.b{stroke:var(--b);stroke-dasharray:6 3}
.chart circle.a,.chart text.a{fill:var(--a)}.chart circle.b,.chart text.b{fill:var(--b)}
.chart .drop{stroke:var(--soft);stroke-dasharray:2 3}.chart text.drop{stroke:none;font-size:11px}
.chart .phase{stroke:var(--soft)}
.chart.spread .box{fill:var(--bar)}.chart.spread .median{stroke:var(--ink);stroke-width:2}
.chart.spread circle{fill-opacity:.75}
td.words,th.words{text-align:left;color:var(--soft);font-size:13px}
.ladder tbody th{white-space:normal}
.ladder tbody th small{max-width:62ch}
.ladder tr.official th,.ladder tr.official td{font-weight:700}
.ladder tr.official th small,.ladder tr.official td.words{font-weight:400}
summary{cursor:pointer;color:var(--soft)}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(520px,100%),1fr));gap:24px 20px}
.planes{display:flex;gap:8px;align-items:flex-start}
.planes>div{min-width:0}
figure{margin:0;break-inside:avoid}
figcaption{font-size:14px;margin-bottom:6px}
figcaption span{color:var(--soft);margin-left:8px;white-space:nowrap;font-variant-numeric:tabular-nums}
.slice{width:100%;height:auto;display:block;border-radius:6px;background:#000}
.where{font-size:12px;color:var(--soft);margin:4px 0 0}
.missing{border:1px dashed var(--line);border-radius:6px;padding:24px;color:var(--soft);font-size:14px;
overflow-wrap:anywhere}
.legend{display:inline-flex;flex-wrap:wrap;gap:4px 20px;font-size:13px;background:#16191d;color:#e6eaf0;
border-radius:6px;padding:6px 12px;print-color-adjust:exact;-webkit-print-color-adjust:exact}
.legend span{display:inline-flex;align-items:center;gap:8px}
.key{width:34px;height:8px}
.truth,.prediction{fill:none;stroke-width:1.8;stroke-linejoin:round;vector-effect:non-scaling-stroke}
.truth.kidney{stroke:#3f8cff}.truth.tumor{stroke:#a5dcff}
.prediction{stroke-dasharray:5 3}.prediction.kidney{stroke:#ff7d1a}.prediction.tumor{stroke:#ffd97a}
@media print{:root{--page:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#bbb;--a:#1f6feb;--b:#c2570c;
--warn:#fff;
--warn-ink:#000;--bar:#e8e8e8}
body{font-size:11px}section{border:0;padding:0;margin:0 0 18px}header,main,footer{padding:0;max-width:none}
h2,figcaption{break-after:avoid}tr{break-inside:avoid}.banner.phantom{border-color:#000}.scroll{
overflow:visible}
table,table.narrow{font-size:11px}
table.sortable,thead th,small{font-size:9px}
.aside,dl,figcaption,.legend,.where,td.words,th.words,.tile p:last-child{font-size:11px}
th,td,.sortable th,.sortable td{padding:3px 4px}.figures{grid-template-columns:1fr}
figure{max-width:150mm}.chart{max-width:150mm}
.slice image,td.bar{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""

SORT_SCRIPT = """
for(const table of document.querySelectorAll("table.sortable")){
const heads=[...table.tHead.rows[1].cells],body=table.tBodies[0];
heads.forEach((head,i)=>head.firstChild.addEventListener("click",()=>{
const up=head.getAttribute("aria-sort")!=="ascending";
heads.forEach(other=>other.removeAttribute("aria-sort"));
head.setAttribute("aria-sort",up?"ascending":"descending");
const value=row=>row.cells[i].dataset.v;
body.append(...[...body.rows].sort((a,b)=>(up?1:-1)*
(i?value(a)-value(b):value(a).localeCompare(value(b)))));}));}
"""
