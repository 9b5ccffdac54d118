// What the page does by itself: images open large.
() => {
  const dialog = document.createElement("dialog");
  dialog.className = "tt-zoom";
  const picture = document.createElement("img");
  const words = document.createElement("p");
  dialog.append(picture, words);
  dialog.addEventListener("click", () => dialog.close());
  document.body.append(dialog);
  const open = (image) => {
    picture.src = image.src;
    picture.alt = words.textContent = image.alt;
    dialog.showModal();
  };
  const shown = (event) => event.target.closest?.(".tt-stage img");
  document.addEventListener("click", (event) => shown(event) && open(event.target));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && shown(event)) open(event.target);
  });

  document.addEventListener("input", (event) => {
    const wipe = event.target.closest?.(".tt-wipe");
    if (wipe) wipe.style.setProperty("--tt-x", `${event.target.value}%`);
  });
};
