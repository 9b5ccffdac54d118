/* On the page of three questions: a click on a row of each table, and the command is made of their last cells. */
document.addEventListener("DOMContentLoaded", () => {
  const box = document.querySelector(".which-search");
  if (!box) return;
  const tables = [...document.querySelectorAll("article table")].slice(0, 3);
  const command = document.createElement("pre");
  box.replaceChildren(command);
  box.setAttribute("aria-live", "polite");
  const chosen = tables.map(() => null);

  const added = (row) => row.lastElementChild.textContent.trim();

  /* An option that two answers give is the later one's; --check may be there several times. */
  function options(texts) {
    const parts = texts.flatMap((text) => text.split(/ (?=--)/));
    const name = (part) => part.split(" ")[0];
    return parts.filter(
      (part, i) => name(part) === "--check" || !parts.slice(i + 1).some((later) => name(later) === name(part)),
    );
  }

  function choose(table, row) {
    chosen[table] = row;
    tables[table].querySelectorAll("tbody tr").forEach((other) => {
      other.setAttribute("aria-selected", String(other === row));
    });
    const parts = options(chosen.filter(Boolean).map(added));
    const prompt = parts.some((part) => part.startsWith("--prompts-file")) ? "" : ' "two red circles"';
    command.textContent = [`ttsnap generate${prompt}`, ...parts].join(" \\\n    ");
  }

  tables.forEach((table, i) => {
    table.querySelectorAll("tbody tr").forEach((row, j) => {
      row.tabIndex = 0;
      row.classList.add("answer");
      row.addEventListener("click", () => choose(i, row));
      row.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") {
          event.preventDefault();
          choose(i, row);
        }
      });
      if (j === (i === 2 ? 1 : 0)) choose(i, row);
    });
  });
});
