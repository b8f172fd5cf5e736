// What the page cannot do without: it works without this file as well, by links, forms and a reload every ten seconds.
(() => {
  "use strict";
  const EVERY_MILLISECONDS = 5000;
  const COPIED_MILLISECONDS = 1500;
  document.documentElement.classList.add("js");

  const live = document.getElementById("live");
  const look = () => {
    if (live && document.visibilityState === "visible") htmx.trigger(live, "look");
  };
  if (live) {
    setInterval(look, EVERY_MILLISECONDS);
    document.addEventListener("visibilitychange", look);
    const stale = (is) => { document.getElementById("stale").hidden = !is; };
    let title = document.getElementById("banner").dataset.title;
    live.addEventListener("htmx:sendError", () => stale(true));
    live.addEventListener("htmx:responseError", () => stale(true));
    live.addEventListener("htmx:afterSwap", (event) => {
      if (event.target !== live) return;
      stale(false);
      const banner = document.getElementById("banner");
      document.title = `${banner.dataset.kind} · Solowriter`;
      if (banner.dataset.title !== title) {
        title = banner.dataset.title;
        document.getElementById("said").textContent = title;
      }
    });
  }

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const code = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {  // not allowed here: leave it selected, for the keyboard
      getSelection().selectAllChildren(code);
      return;
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, COPIED_MILLISECONDS);
  });
})();
