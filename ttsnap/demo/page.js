// What the page does by itself: images open large, and a PNG dropped anywhere restores its settings.
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

  const pngs = (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.type === "image/png");
  document.addEventListener("dragover", (event) => pngs(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    const files = [...(event.dataTransfer?.files ?? [])].filter((file) => file.type === "image/png");
    const restore = document.querySelector("#restore");
    const input = restore?.offsetParent
      ? restore.parentElement.querySelector(":scope > input[type=file]")
      : document.querySelector("#files input[type=file]"); // on the other tab
    if (!files.length || !input || event.target.closest?.("#files, #picture")) return;
    event.preventDefault();
    event.stopPropagation();
    const transfer = new DataTransfer();
    transfer.items.add(files[0]);
    input.files = transfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  }, true);
};
