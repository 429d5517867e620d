"use strict";
// one slice at a time: wheel, arrow keys, slider, a finger drawn across; without this script all slices stand side by side
for (const stack of document.querySelectorAll(".stack")) {
  const slices = [...stack.querySelectorAll(".one")], marks = [...stack.querySelectorAll(".marks i")];
  const views = stack.closest(".views"), cursors = views.querySelectorAll(".cursor");
  const range = stack.querySelector("input"), output = stack.querySelector("output");
  let now = +stack.dataset.start;
  const show = (wanted) => {
    now = Math.min(Math.max(wanted, 0), slices.length - 1);
    slices.forEach((slice, i) => slice.classList.toggle("on", i === now));
    marks.forEach((mark, i) => mark.classList.toggle("on", i === now));
    cursors.forEach((line) => { line.style.top = slices[now].dataset.depth + "%"; });
    range.value = now;
    output.textContent = slices[now].querySelector(".where").textContent;
    range.setAttribute("aria-valuetext", output.textContent);
  };
  views.classList.add("live");
  stack.querySelector(".bar").hidden = false;
  cursors.forEach((line) => { line.hidden = false; });
  show(now);

  range.addEventListener("input", () => show(+range.value));
  const keys = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1, PageDown: 5, PageUp: -5, Home: -1e9, End: 1e9 };
  stack.addEventListener("keydown", (event) => {
    if (!(event.key in keys) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    show(now + keys[event.key]);
  });

  // a wheel that was scrolling the page goes on with that; at the first and last slice the page scrolls
  let turned = 0;
  stack.querySelector(".slices").addEventListener("wheel", (event) => {
    const down = event.deltaY > 0;
    if (event.ctrlKey || !event.deltaY || Date.now() - lastScroll < 250) return;
    if (now === (down ? slices.length - 1 : 0)) return;
    event.preventDefault();
    turned += event.deltaMode ? Math.sign(event.deltaY) * 60 : event.deltaY;
    if (Math.abs(turned) >= 50) { show(now + Math.sign(turned)); turned = 0; }
  }, { passive: false });

  let from = null;
  const frame = stack.querySelector(".slices");
  frame.addEventListener("pointerdown", (event) => { from = event.clientX; });
  frame.addEventListener("pointermove", (event) => {
    if (from === null || !event.buttons) return;
    const steps = Math.trunc((event.clientX - from) / 18);
    if (steps) { show(now + steps); from += 18 * steps; }
  });
  for (const end of ["pointerup", "pointercancel", "pointerleave"]) frame.addEventListener(end, () => { from = null; });
}
var lastScroll = 0;
addEventListener("scroll", () => { lastScroll = Date.now(); }, { passive: true });

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[1].cells], body = table.tBodies[0];
  heads.forEach((head, i) => head.firstChild.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => row.cells[i].dataset.v;
    body.append(...[...body.rows].sort((a, b) => (up ? 1 : -1) *
      (i ? value(a) - value(b) : value(a).localeCompare(value(b)))));
  }));
}
