/*
Light, dark, or as the system has it.

  treegrpo.remembered(name), remember(name, value)   a reader's choice, kept where the browser lets a file keep one
*/
(() => {
  const { el } = treegrpo;
  const THEMES = ["system", "light", "dark"];
  const key = (name) => `treegrpo-${name}`;

  treegrpo.remembered = (name) => {
    try {
      return localStorage.getItem(key(name));
    } catch {
      return null;
    }
  };
  treegrpo.remember = (name, value) => {
    try {
      localStorage.setItem(key(name), value);
    } catch {
      /* The choice holds until the page is closed. */
    }
  };

  const show = (theme) => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  };
  const kept = treegrpo.remembered("theme");
  const first = THEMES.includes(kept) ? kept : "system";
  show(first);

  treegrpo.themes = () => {
    const select = el("select", {
      id: "theme",
      onchange() {
        show(select.value);
        treegrpo.remember("theme", select.value);
      },
    }, ...THEMES.map((name) => el("option", { value: name }, name)));
    select.value = first;
    return [el("label", { for: "theme" }, "colours"), select];
  };
  treegrpo.register?.({ name: "theme", slot: "toolbar", start: (element) => element.append(...treegrpo.themes()) });
})();
