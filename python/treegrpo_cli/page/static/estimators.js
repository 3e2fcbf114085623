/* Which estimator's values and advantages the page shows, what it computes, and which cannot score this file. */
(() => {
  const { el, scorings, refused, state, number, visible } = treegrpo;

  const about = () => {
    const scoring = treegrpo.scoring();
    return [
      el("p", {}, el("b", {}, visible(scoring.label)), scoring.summary ? `: ${visible(scoring.summary)}` : ""),
      scoring.formula ? el("p", { class: "formula" }, visible(scoring.formula)) : null,
      el("pre", { tabindex: 0, role: "group", "aria-label": "Options" }, treegrpo.written(scoring.options)),
      refused.length ? el("p", {}, "These cannot score this file:") : el("p", {}, "Every built-in estimator can score this file."),
      refused.length
        ? el("dl", { class: "refused" }, ...refused.flatMap(({ name, reason }) => [el("dt", {}, name), el("dd", {}, visible(reason))]))
        : null,
    ].filter(Boolean);
  };

  treegrpo.register({
    name: "estimators",
    slot: "toolbar",
    start(element) {
      const select = el("select", { id: "scoring", onchange: () => treegrpo.select({ scoring: Number(select.value) }) },
        el("optgroup", { label: "as asked for, or as in the file" }, el("option", { value: 0 }, visible(scorings[0].label))),
        el("optgroup", { label: "scored again, default options" },
          ...scorings.slice(1).map((scoring) => el("option", { value: scoring.place }, scoring.label))));
      const body = el("div", { class: "sheet" });
      const details = el("details", { class: "about" }, el("summary", {}, "what it is"), body);
      const draw = () => {
        select.value = String(state.scoring);
        body.replaceChildren(...about());
      };
      document.addEventListener("click", (event) => {
        if (!details.contains(event.target)) details.open = false;
      });
      details.addEventListener("keydown", (event) => {
        if (event.key !== "Escape") return;
        details.open = false;
        details.firstChild.focus();
      });
      element.append(el("label", { for: "scoring" }, "scored by"), select, details);
      draw();
      treegrpo.on("changed", ({ changed }) => {
        if (changed.has("scoring")) draw();
      });
    },
  });

  const LEGENDS = {
    advantage: () => {
      const max = treegrpo.scale("advantage").max;
      return [["n5", `▼ −${number(max)}`], ["n3", ""], ["n1", ""], ["zero", "0"], ["p1", ""], ["p3", ""], ["p5", `▲ +${number(max)}`]];
    },
    logprob: () => [["s0", "100%"], ["s1", ""], ["s2", ""], ["s3", ""], ["s4", ""], ["s5", "under 6%"]],
  };
  const NAMES = [["advantage", "advantage"], ["logprob", "log-probability"]];

  treegrpo.register({
    name: "colouring",
    slot: "toolbar",
    start(element) {
      const draw = () =>
        element.replaceChildren(
          el("span", { class: "tool-label", id: "colouring-label" }, "tokens by"),
          el("span", { class: "switch", role: "group", "aria-labelledby": "colouring-label" },
            ...NAMES.map(([name, label]) =>
              el("button", {
                "aria-pressed": String(state.colouring === name),
                onclick() {
                  treegrpo.select({ colouring: name });
                  element.querySelector(`[aria-pressed="true"]`).focus();
                },
              }, label))),
          el("span", { class: "legend", role: "img", "aria-label": `colours from ${LEGENDS[state.colouring]().filter(([, text]) => text).map(([, text]) => text).join(" to ")}` },
            ...LEGENDS[state.colouring]().map(([name, text]) => el("span", { class: `tone ${name}` }, text)),
            el("span", { class: "token masked" }, "masked")));
      draw();
      treegrpo.on("changed", ({ changed }) => {
        if (changed.has("scoring") || changed.has("colouring")) draw();
      });
    },
  });
})();
