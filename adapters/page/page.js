"use strict";
// Rows of a table that hold all the words typed; a group's heading stays while one of its rows does.
for (const input of document.querySelectorAll("input[data-filter]")) {
  const table = document.getElementById(input.dataset.filter);
  const note = document.getElementById(input.dataset.filter + "-found");
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    if (note) note.textContent = words.length ? `${shown} found` : "";
  });
}
// A column's button sorts its table; what has no number stands behind what has one.
for (const button of document.querySelectorAll("button.sort")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign < 0 ? "descending" : "ascending");
    const order = (a, b) => {
      const [one, other] = [a, b].map((row) => row.cells[head.cellIndex]);
      const known = [one, other].filter((cell) => "number" in cell.dataset).length;
      if (known === 2) return sign * (one.dataset.number - other.dataset.number);
      if (known === 1) return "number" in one.dataset ? -1 : 1;
      return sign * one.textContent.localeCompare(other.textContent);
    };
    body.append(...[...body.rows].sort(order));
  });
}
// Paper cannot be clicked: everything is open there.
const opened = [];
window.addEventListener("beforeprint", () => {
  for (const each of document.querySelectorAll("details:not([open])")) {
    each.open = true;
    opened.push(each);
  }
});
window.addEventListener("afterprint", () => {
  for (const each of opened.splice(0)) each.open = false;
});
