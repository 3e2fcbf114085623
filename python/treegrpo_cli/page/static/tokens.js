/*
Tokens as text, coloured by what they get or by how likely they were.

  treegrpo.tokenSpans(i, first, end)   spans of a node's tokens; what is known of one is told on hover and on focus
  treegrpo.tokenText1(i, id)           the token's text, or #id where there is none
  treegrpo.percent(logprob)            its probability
A token that was not sampled (the prompt, an observation) is masked: hatched, and said to be so. The arrow keys go from
token to token.
*/
(() => {
  const { nodes, state, el, number, signed, visible } = treegrpo;
  const MAX_TOKENS = 3000;

  const advantageOf = (i, inCall) => {
    const unmasked = treegrpo.column("unmasked_advantage");
    return unmasked && !inCall ? unmasked[i] : treegrpo.column("advantage")[i];
  };
  const surprise = (logprob) => {
    if (Number.isNaN(logprob)) return "tone none";
    const bits = -logprob / Math.LN2;
    return `tone s${Math.min(5, Math.max(0, Math.ceil(bits * 1.25 - 0.05)))}`;
  };
  treegrpo.percent = (logprob) => {
    const share = 100 * Math.exp(logprob);
    return share >= 99.95 ? "100%" : share >= 1 ? `${share.toFixed(1)}%` : `${share.toPrecision(2)}%`;
  };

  const said = (i, tokens, k) => {
    const id = tokens.ids[k];
    const about = [`token ${id}`];
    if (!tokens.sampled(k)) about.push("masked: not sampled, not trained");
    else {
      const logprob = tokens.logprobs[k];
      about.push(Number.isNaN(logprob) ? "log-probability not in the file" : `log-probability ${number(logprob)} (${treegrpo.percent(logprob)})`);
      about.push(`advantage ${signed(advantageOf(i, tokens.inCall(k)))}`);
      if (tokens.inCall(k)) about.push("part of a tool call");
    }
    return about.join(" · ");
  };

  treegrpo.tokenText1 = (i, id) => {
    const text = treegrpo.tokenText(nodes.tree[i], id);
    return text === null ? `#${id}` : text;
  };

  treegrpo.tokenSpans = (i, first = 0, end = Infinity) => {
    const tokens = treegrpo.tokens(i);
    const spans = [];
    const last = Math.min(end, tokens.size, first + MAX_TOKENS);
    const max = treegrpo.scale("advantage").max;
    for (let k = first; k < last; k++) {
      const masked = !tokens.sampled(k);
      const colour = masked ? "masked"
        : state.colouring === "logprob" ? surprise(tokens.logprobs[k])
          : treegrpo.tone(advantageOf(i, tokens.inCall(k)), max);
      const text = treegrpo.tokenText1(i, tokens.ids[k]);
      spans.push(el("span", {
        class: `token ${colour}${text.startsWith("#") && treegrpo.tokenText(nodes.tree[i], tokens.ids[k]) === null ? " id" : ""}`,
        tabindex: k === first ? 0 : -1,
        "data-node": i,
        "data-token": k,
      }, text.includes("\n") ? treegrpo.written(text.replace(/\n/g, "⏎\n")) : visible(text) || "∅"));
      if (treegrpo.isSpaced(nodes.tree[i])) spans.push(" ");
    }
    const left = Math.min(end, tokens.size) - last;
    if (left > 0) {
      const more = el("button", { class: "more", onclick: () => more.replaceWith(...treegrpo.tokenSpans(i, last, end)) },
        `${left.toLocaleString("en")} more tokens`);
      spans.push(more);
    }
    return spans;
  };

  const tip = el("div", { id: "token-tip", role: "tooltip", hidden: true });
  const show = (span) => {
    const i = Number(span.dataset.node);
    tip.textContent = said(i, treegrpo.tokens(i), Number(span.dataset.token));
    tip.hidden = false;
    const box = span.getBoundingClientRect();
    const below = box.bottom + 6 + tip.offsetHeight < innerHeight;
    tip.style.top = `${below ? box.bottom + 6 : Math.max(4, box.top - 6 - tip.offsetHeight)}px`;
    tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - tip.offsetWidth - 8))}px`;
  };
  const tokenAt = (event) => event.target.closest?.("[data-token]");
  const near = (span, forward) => {
    let other = forward ? span.nextElementSibling : span.previousElementSibling;
    while (other && other.dataset.token === undefined) other = forward ? other.nextElementSibling : other.previousElementSibling;
    return other;
  };

  treegrpo.register({
    name: "tokens",
    slot: "none",
    start() {
      document.body.append(tip);
      for (const name of ["mouseover", "focusin"])
        document.addEventListener(name, (event) => {
          const span = tokenAt(event);
          tip.hidden = !span;
          if (!span) return;
          if (name === "focusin") span.setAttribute("aria-describedby", "token-tip");
          show(span);
        });
      document.addEventListener("scroll", () => (tip.hidden = true), { capture: true, passive: true });
      document.addEventListener("keydown", (event) => {
        const span = tokenAt(event);
        if (event.key === "Escape") tip.hidden = true;
        if (!span || !["ArrowRight", "ArrowLeft"].includes(event.key)) return;
        const next = near(span, event.key === "ArrowRight");
        if (!next) return;
        event.preventDefault();
        event.stopPropagation();
        span.tabIndex = -1;
        next.tabIndex = 0;
        next.focus();
      }, { capture: true });
    },
  });
})();
