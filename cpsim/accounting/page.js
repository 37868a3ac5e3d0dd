"use strict";
// Tables sort by the column whose head is pressed; charts show the figures under the pointer; the theme can be changed.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const downwards = head.getAttribute("aria-sort") === "ascending" ||
      (head.classList.contains("num") && head.getAttribute("aria-sort") === "none");
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", downwards ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent;
    const compare = head.classList.contains("num")
      ? (a, b) => Number(a) - Number(b)
      : (a, b) => (a < b ? -1 : a > b ? 1 : 0);
    const rows = [...body.rows].map((row) => [key(row), row]);
    const filled = rows.filter(([value]) => value !== "");
    const empty = rows.filter(([value]) => value === "");
    filled.sort((a, b) => (downwards ? -1 : 1) * compare(a[0], b[0]));
    body.append(...filled.concat(empty).map(([, row]) => row));
  }));
}
const tip = document.getElementById("tip");
document.addEventListener("pointermove", (event) => {
  const text = event.target.dataset ? event.target.dataset.tip : undefined;
  tip.hidden = text === undefined;
  if (text === undefined) return;
  tip.textContent = text;
  const beyond = event.clientX + 14 + tip.offsetWidth > innerWidth;
  tip.style.left = `${beyond ? Math.max(4, event.clientX - 14 - tip.offsetWidth) : event.clientX + 14}px`;
  tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 4)}px`;
});
const button = document.querySelector(".theme");
button.hidden = false;
button.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
