"use strict";
(() => {
  const PAGE = 12;
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
  let shown = PAGE;

  // Sample replies: filters, search, and their state in the address, so that a view can be linked to.
  const NAMES = ["q", "task", "label", "outcome"];
  const samples = [...document.querySelectorAll(".sample")].map((element) => ({
    element,
    text: element.textContent.toLowerCase(),
    replies: [...element.querySelectorAll(".reply")],
  }));

  function matches(sample, wanted) {
    const replies = sample.replies.filter((reply) => !wanted.label || reply.dataset.label === wanted.label);
    const outcomes = new Set(replies.map((reply) => reply.dataset.outcome));
    return (
      replies.length > 0 &&
      (!wanted.task || sample.element.dataset.task === wanted.task) &&
      (!wanted.outcome || (wanted.outcome === "differ" ? outcomes.size > 1 : outcomes.has(wanted.outcome))) &&
      wanted.q.toLowerCase().split(/\s+/).every((word) => sample.text.includes(word))
    );
  }

  function show() {
    const wanted = Object.fromEntries(NAMES.map((name) => [name, byId(name).value]));
    let found = 0;
    for (const sample of samples) {
      const fits = matches(sample, wanted);
      sample.element.hidden = !fits || ++found > shown;
      for (const reply of sample.replies) reply.hidden = Boolean(wanted.label) && reply.dataset.label !== wanted.label;
    }
    byId("count").textContent = `${found} of ${samples.length} questions${found > shown ? `, the first ${shown} shown` : ""}`;
    byId("more").hidden = found <= shown;
  }

  function filtered() {
    shown = PAGE;
    show();
    const state = new URLSearchParams(NAMES.map((name) => [name, byId(name).value]).filter(([, value]) => value));
    try { history.replaceState(null, "", `#${state.size ? state : "replies"}`); } catch { /* some viewers forbid it */ }
  }

  function fromAddress() {
    const state = new URLSearchParams(location.hash.slice(1));
    if (!NAMES.some((name) => state.has(name))) return false;
    for (const name of NAMES) byId(name).value = state.get(name) ?? "";
    shown = PAGE;
    show();
    return true;
  }

  if (samples.length) {
    byId("filters").addEventListener("input", filtered);
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    byId("more").addEventListener("click", () => { shown += PAGE; show(); });
    show();
    if (fromAddress()) byId("replies").scrollIntoView();
  }

  // An artifact that is linked to opens.
  function follow() {
    const target = byId(location.hash.slice(1));
    if (target?.tagName === "DETAILS") target.open = true;
    else if (samples.length) fromAddress();
  }
  addEventListener("hashchange", follow);
  follow();

  // Line charts say the values nearest to the pointer.
  const tip = byId("tip");
  function nearest([name, points], x) {
    const distances = points.map(([place]) => Math.abs(place - x));
    const [, step, value] = points[distances.indexOf(Math.min(...distances))];
    return { text: `${name}: ${value} (step ${step})`, distance: Math.min(...distances) };
  }
  for (const svg of document.querySelectorAll("svg.lines")) {
    const lines = Object.entries(JSON.parse(svg.dataset.lines)).filter(([, points]) => points.length);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      const found = lines.map((line) => nearest(line, x)).filter((one) => one.distance < 25);
      tip.hidden = !found.length;
      tip.textContent = found.map((one) => one.text).join("\n");
      tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
      tip.style.top = `${Math.max(event.clientY - tip.offsetHeight - 10, 4)}px`;
    });
    svg.addEventListener("pointerleave", () => { tip.hidden = true; });
  }

  // Print what is folded away in the config and the cards, not every manifest.
  addEventListener("beforeprint", () => {
    for (const element of document.querySelectorAll("details:not(.artifact)")) element.open = true;
  });
  root.dataset.ready = "yes";
})();
