/* Which estimator's values and advantages the page shows, and which cannot score this file. */
(() => {
  const { el, scorings, refused, state } = treegrpo;

  treegrpo.register({
    name: "estimators",
    slot: "toolbar",
    start(element) {
      const select = el("select", { id: "scoring", onchange: () => treegrpo.select({ scoring: Number(select.value) }) },
        ...scorings.map((scoring) =>
          el("option", { value: scoring.place }, scoring.name === null ? `${scoring.label} (the file's)` : scoring.label)));
      element.append(el("label", { for: "scoring" }, "scored by"), select);
      treegrpo.on("changed", ({ changed }) => {
        if (changed.has("scoring")) select.value = String(state.scoring);
      });
    },
  });
})();
