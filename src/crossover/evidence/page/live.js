"use strict";
// Asks the server for its version; when that has changed, the page's body is exchanged under the reader's eyes.
(() => {
  const main = () => document.querySelector("main");
  const every = () => 1000 * (Number(main().dataset.every) || 3);
  const clock = () => new Date().toLocaleString();
  let since = clock();

  function tell(text, lost) {
    document.getElementById("told").textContent = text;
    document.getElementById("live").classList.toggle("lost", lost);
  }

  // Which folded parts stand open, by their words: their number may change from one page to the next.
  function folded(root) {
    const seen = new Map();
    return [...root.querySelectorAll("details")].map((part) => {
      const words = part.querySelector("summary").textContent;
      const count = (seen.get(words) || 0) + 1;
      seen.set(words, count);
      return [`${count} ${words}`, part];
    });
  }

  function exchange(next) {
    const open = new Set(folded(main()).filter(([, part]) => part.open).map(([key]) => key));
    const aside = [...main().querySelectorAll(".scroll")].map((box) => box.scrollLeft);
    const [left, top] = [window.scrollX, window.scrollY];
    main().replaceWith(document.adoptNode(next));
    folded(main()).forEach(([key, part]) => { part.open = open.has(key); });
    main().querySelectorAll(".scroll").forEach((box, place) => { box.scrollLeft = aside[place] || 0; });
    window.scrollTo(left, top);
  }

  // A server that has stopped in the middle of an answer must not leave the page saying that it is live.
  const ask = (path) => fetch(path, { cache: "no-store", signal: AbortSignal.timeout(20000) });

  async function look() {
    const version = (await (await ask("/version")).json()).version;
    if (version !== main().dataset.version) {
      // Whoever is marking text is not disturbed.
      if (String(window.getSelection()) !== "") {
        tell(`waiting: text is marked; this page is of ${since}`, false);
        return;
      }
      const page = new DOMParser().parseFromString(await (await ask("/")).text(), "text/html");
      exchange(page.querySelector("main"));
      document.title = page.title;
      since = clock();
    }
    tell(`live; this page is of ${since}`, false);
  }

  async function go() {
    try {
      await look();
    } catch {
      tell(`not live: no answer from the server; this page is of ${since}`, true);
    }
    setTimeout(go, every());
  }
  document.addEventListener("DOMContentLoaded", () => setTimeout(go, every()));
})();
