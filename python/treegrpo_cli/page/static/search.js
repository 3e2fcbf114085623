/* Finds words in questions, turns and observations: Enter or n goes on, Shift+Enter or N back. */
(() => {
  const { el, nodes, prompts, trees, state } = treegrpo;
  const MARKS = "treegrpo-found";
  const MAX_MARKS = 500;
  const SLICE_MS = 30;
  let asked = "";
  let found = [];
  let round = 0;

  const holds = (text) => text.toLowerCase().includes(asked);
  const pause = () => new Promise((done) => setTimeout(done));

  const lookThrough = async (mine) => {
    const hits = [];
    let since = performance.now();
    for (const tree of trees) {
      const { text, observation } = treegrpo.texts(tree.place);
      for (let i = tree.start; i < tree.end; i++) {
        const isRoot = i === tree.start;
        if (holds(text[i - tree.start]) || holds(observation[i - tree.start]) || (isRoot && holds(prompts[tree.prompt].question))) hits.push(i);
      }
      if (performance.now() - since < SLICE_MS) continue;
      await pause();
      if (mine !== round) return null;
      since = performance.now();
    }
    return hits;
  };

  /* Marks what was found in the panel of the node, without touching its elements. */
  const mark = () => {
    if (!globalThis.Highlight) return;
    const ranges = [];
    const walker = document.createTreeWalker(document.getElementById("node"), NodeFilter.SHOW_TEXT);
    while (asked && ranges.length < MAX_MARKS && walker.nextNode()) {
      const text = walker.currentNode.data.toLowerCase();
      if (text.length !== walker.currentNode.data.length) continue;
      for (let at = text.indexOf(asked); at >= 0 && ranges.length < MAX_MARKS; at = text.indexOf(asked, at + asked.length)) {
        const range = new Range();
        range.setStart(walker.currentNode, at);
        range.setEnd(walker.currentNode, at + asked.length);
        ranges.push(range);
      }
    }
    CSS.highlights.set(MARKS, new Highlight(...ranges));
  };

  treegrpo.register({
    name: "search",
    slot: "filterbar",
    start(element) {
      const input = el("input", { id: "search", type: "search", placeholder: "words in turns", title: "in questions, turns and observations", autocomplete: "off", spellcheck: "false" });
      const back = el("button", { type: "button", "aria-label": "previous hit", disabled: true, onclick: () => treegrpo.nextHit(-1) }, "‹");
      const on = el("button", { type: "button", "aria-label": "next hit", disabled: true, onclick: () => treegrpo.nextHit(1) }, "›");
      const note = el("output", { id: "search-note", class: "pane-note", for: "search", "aria-live": "polite" });

      const shown = () => found.filter((i) => treegrpo.isShown(i));
      const tell = (hits = shown()) => {
        back.disabled = on.disabled = hits.length === 0;
        const place = hits.indexOf(state.node);
        const count = `${hits.length.toLocaleString("en")} node${hits.length === 1 ? "" : "s"}`;
        note.textContent = !asked ? "" : !hits.length ? "no hits" : place < 0 ? count : `${(place + 1).toLocaleString("en")} of ${count}`;
      };
      treegrpo.nextHit = (direction) => {
        const hits = shown();
        if (!hits.length) return;
        const place = hits.indexOf(state.node);
        const after = hits.findIndex((i) => i > state.node);
        const from = place >= 0 ? place : direction > 0 ? (after < 0 ? hits.length : after) - 1 : after < 0 ? hits.length : after;
        treegrpo.select({ step: null, node: hits[(from + direction + hits.length) % hits.length] });
      };
      const look = async () => {
        const mine = ++round;
        asked = input.value.trim().toLowerCase();
        found = [];
        note.textContent = asked ? "searching …" : "";
        const hits = asked ? await lookThrough(mine) : [];
        if (hits === null || mine !== round) return false;
        found = hits;
        tell();
        mark();
        return true;
      };

      let waiting = 0;
      input.addEventListener("input", () => {
        clearTimeout(waiting);
        waiting = setTimeout(look, 150);
      });
      input.addEventListener("keydown", async (event) => {
        if (event.key === "Escape" && input.value) {
          event.preventDefault();
          input.value = "";
          input.dispatchEvent(new Event("change"));
          look();
        } else if (event.key === "Enter") {
          clearTimeout(waiting);
          if (input.value.trim().toLowerCase() === asked || (await look())) treegrpo.nextHit(event.shiftKey ? -1 : 1);
        }
      });
      treegrpo.on("changed", ({ changed }) => {
        if (!asked) return;
        if (["node", "filters"].some((name) => changed.has(name))) tell();
        mark();
      });
      element.append(el("label", { for: "search" }, "search"), input, back, on, note);
    },
  });
})();
