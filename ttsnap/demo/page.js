// What the stage does by itself: `element`. A picture opens large where it is clicked; the candidate
// that it belongs to, where it is under way, can then be finished or dropped. A click on an item of a
// checklist lights the pictures that have it.
const dialog = document.createElement("dialog");
dialog.className = "tt-zoom";
const picture = document.createElement("img");
const words = document.createElement("p");
const hand = document.createElement("div");
dialog.append(picture, words, hand);
document.body.append(dialog);
dialog.addEventListener("click", () => dialog.close());

for (const [verb, text] of [["finish", "Finish it now"], ["drop", "Drop it"]]) {
  const button = document.createElement("button");
  button.dataset.verb = verb;
  button.textContent = text;
  button.addEventListener("click", () => {
    const { uid } = hand.dataset;
    const foot = element.querySelector(`[data-asked][data-uid="${uid}"]`);
    if (foot) foot.dataset.asked = verb;  // at once; the next frame says the same
    trigger("click", { verb, uid: Number(uid) });
  });
  hand.append(button);
}

const open = (target) => {
  const cell = target.closest?.(".tt-cell");
  const image = target.closest?.("img") ?? cell?.querySelector("img");
  const uid = cell?.dataset.uid;
  if (!image && uid === undefined) return;
  picture.hidden = !image;
  picture.src = image?.src ?? "";
  picture.alt = words.textContent = image?.alt ?? cell.title;
  hand.hidden = uid === undefined;
  hand.dataset.uid = uid;
  dialog.showModal();
};
element.addEventListener("click", ({ target }) => open(target));

// Browsers make no click where a frame replaced, while the button was down, what lay there.
let down = null;
const name = (node) =>
  node?.closest?.(".tt-item")?.dataset.item
  ?? node?.closest?.(".tt-cell")?.dataset.uid
  ?? node?.closest?.("img")?.alt;
element.addEventListener("pointerdown", ({ target, button }) => { down = button ? null : target; });
element.addEventListener("pointerup", ({ clientX, clientY }) => {
  const up = document.elementFromPoint(clientX, clientY);
  if (down?.isConnected === false && name(up) !== undefined && name(up) === name(down)) up.click?.();
  down = null;
});

const lit = new Set();
const light = () => {
  const wanted = [];
  for (const item of element.querySelectorAll(".tt-item")) {
    const on = lit.has(item.dataset.item);
    item.setAttribute("aria-pressed", on);
    if (on) wanted.push(item.dataset.item);
  }
  for (const cell of element.querySelectorAll(".tt-cell")) {
    const has = cell.querySelector("[data-has]")?.dataset.has.split(" ") ?? [];
    cell.classList.toggle("tt-dim", wanted.some((item) => !has.includes(item)));
  }
};
element.addEventListener("click", ({ target }) => {
  const item = target.closest?.(".tt-item")?.dataset.item;
  if (item === undefined) return;
  if (!lit.delete(item)) lit.add(item);
  light();
});
new MutationObserver(light).observe(element, { childList: true, subtree: true });  // each frame
element.addEventListener("keydown", ({ key, target }) => key === "Enter" && open(target));

element.addEventListener("input", ({ target }) => {
  const wipe = target.closest?.(".tt-wipe");
  if (wipe) wipe.style.setProperty("--tt-x", `${target.value}%`);
});
