"use strict";
(() => {
  const root = document.documentElement;
  const kept = { get: () => { try { return localStorage.getItem("theme"); } catch { return null; } },
                 set: (name) => { try { localStorage.setItem("theme", name); } catch { /* not kept, then */ } } };
  const show = (name) => {
    if (name === "light" || name === "dark") root.dataset.theme = name; else delete root.dataset.theme;
  };
  const theme = document.getElementById("theme");
  const verdict = document.getElementById("verdict");
  document.querySelector(".controls").hidden = false;

  theme.value = kept.get() || "auto";
  show(theme.value);
  theme.addEventListener("change", () => { show(theme.value); kept.set(theme.value); });

  verdict.addEventListener("change", () => {
    const claims = [...document.querySelectorAll("[data-verdict]")];
    for (const claim of claims) claim.hidden = verdict.value !== "" && claim.dataset.verdict !== verdict.value;
    const sections = claims.filter((claim) => claim.tagName === "SECTION");
    const shown = sections.filter((claim) => !claim.hidden).length;
    document.getElementById("shown").textContent = `${shown} of ${sections.length} shown`;
  });

  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b
      : typeof a === "number" ? -1 : typeof b === "number" ? 1 : a.localeCompare(b, undefined, { numeric: true });
  for (const table of document.querySelectorAll("table")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows];
        rows.sort((a, b) => (down ? -1 : 1) * compare(value(a, column), value(b, column)));
        table.tBodies[0].append(...rows);
      });
    });
  }
})();
