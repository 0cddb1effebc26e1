"use strict";
(() => {
  const { config, specs } = JSON.parse(document.getElementById("figures").textContent);
  const options = { renderer: "svg", actions: false, config };
  const draw = (place) => {
    if (place.dataset.state) return;
    place.dataset.state = "drawing";
    vegaEmbed(place, specs[place.id], options).then(
      () => { place.dataset.state = "drawn"; },
      (error) => { place.dataset.state = "failed"; console.error(place.id, error); },
    );
  };
  // What is in a folded part is drawn when that is opened: there may be many.
  const drawVisible = () => {
    for (const place of document.querySelectorAll(".figure")) if (!place.closest("details:not([open])")) draw(place);
  };
  for (const part of document.querySelectorAll("details")) part.addEventListener("toggle", drawVisible);
  drawVisible();

  const root = document.documentElement;
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  const value = (row, column) => {
    const text = row.cells[column].dataset.value;
    const number = Number(text);
    return text === "" ? -Infinity : Number.isNaN(number) ? text : number;
  };
  const order = (one, other) => (typeof one === "string" || typeof other === "string"
    ? String(one).localeCompare(String(other), undefined, { numeric: true }) : one - other);
  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
      const sort = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      for (const each of headings) each.setAttribute("aria-sort", each === heading ? sort : "none");
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => order(value(a, column), value(b, column)) * (sort === "ascending" ? 1 : -1));
      table.tBodies[0].append(...rows);
    }));
  }
})();
