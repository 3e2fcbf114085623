/*
Rows of equal height, of which only those in view are in the document.

  new treegrpo.Rows(element, {height, role, label, draw(k), header, choose(k), key(event, k)})
    draw(k): the element of row k; header: an element that stays above the rows; choose(k): a row was clicked or
    reached by the keyboard; key(event, k): other keys on the active row
  rows.show(count, active)       draws anew; rows.redraw() the same ones; rows.activate(k) scrolls to it
The element itself keeps the focus and names its active row, which is always in the document.
*/
(() => {
  const { el } = treegrpo;
  const MARGIN = 12;
  let numRows = 0;

  treegrpo.Rows = class {
    constructor(element, options) {
      Object.assign(this, { element, options, count: 0, active: 0, drawn: new Map(), id: `rows-${numRows++}` });
      this.body = el("div", { class: "rows-body", role: "rowgroup" });
      element.setAttribute("role", options.role);
      element.setAttribute("aria-label", options.label);
      element.tabIndex = 0;
      if (options.header) element.append(options.header);
      element.append(this.body);
      element.addEventListener("scroll", () => this.schedule(), { passive: true });
      element.addEventListener("keydown", (event) => this.onKey(event));
      this.body.addEventListener("click", (event) => {
        const row = event.target.closest("[data-row]");
        if (row && !event.defaultPrevented) this.choose(Number(row.dataset.row));
      });
      new ResizeObserver(() => this.schedule()).observe(element);
    }

    show(count, active) {
      this.count = count;
      this.active = Math.max(0, Math.min(active, count - 1));
      this.body.style.height = `${count * this.options.height}px`;
      this.element.setAttribute("aria-rowcount", count);
      this.redraw();
      this.reveal(this.active);
    }

    redraw() {
      this.drawn.clear();
      this.body.replaceChildren();
      this.draw();
    }

    activate(k) {
      this.active = k;
      this.redraw();
      this.reveal(k);
    }

    choose(k) {
      if (k < 0 || k >= this.count) return;
      this.active = k;
      this.options.choose(k);
    }

    reveal(k) {
      const { height } = this.options;
      const head = this.options.header?.offsetHeight ?? 0;
      const [top, bottom] = [k * height, (k + 1) * height + head];
      if (top < this.element.scrollTop) this.element.scrollTop = top;
      else if (bottom > this.element.scrollTop + this.element.clientHeight)
        this.element.scrollTop = bottom - this.element.clientHeight;
      this.draw();
    }

    schedule() {
      this.frame ??= requestAnimationFrame(() => {
        this.frame = null;
        this.draw();
      });
    }

    draw() {
      const { height, draw } = this.options;
      const first = Math.max(0, Math.floor(this.element.scrollTop / height) - MARGIN);
      const end = Math.min(this.count, Math.ceil((this.element.scrollTop + this.element.clientHeight) / height) + MARGIN);
      for (const [k, row] of this.drawn)
        if ((k < first || k >= end) && k !== this.active) {
          row.remove();
          this.drawn.delete(k);
        }
      const made = document.createDocumentFragment();
      for (let k = first; k < end; k++) this.drawRow(k, made, draw, height);
      if (this.count) this.drawRow(this.active, made, draw, height);
      this.body.append(made);
      if (this.count) this.nameActive(`${this.id}-${this.active}`);
      else this.element.removeAttribute("aria-activedescendant");
    }

    nameActive(id) {
      if (this.element.getAttribute("aria-activedescendant") !== id) this.element.setAttribute("aria-activedescendant", id);
    }

    drawRow(k, body, draw, height) {
      if (this.drawn.has(k)) return;
      const row = draw(k);
      row.id = `${this.id}-${k}`;
      row.dataset.row = k;
      row.setAttribute("aria-rowindex", k + 1);
      row.style.top = `${k * height}px`;
      if (k === this.active) row.classList.add("active");
      this.drawn.set(k, row);
      body.append(row);
    }

    onKey(event) {
      if (event.target !== this.element || event.ctrlKey || event.metaKey || event.altKey) return;
      const page = Math.max(1, Math.floor(this.element.clientHeight / this.options.height) - 2);
      const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -this.count, End: this.count };
      const step = Object.hasOwn(steps, event.key) ? steps[event.key] : 0;
      if (step) {
        event.preventDefault();
        this.choose(Math.max(0, Math.min(this.count - 1, this.active + step)));
      } else this.options.key?.(event, this.active);
    }
  };
})();
