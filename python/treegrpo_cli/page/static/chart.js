/*
A small chart of some numbers over steps.

  treegrpo.chart(steps, lines, current)   an SVG element; lines: [{name, values}], a value null where there is none, from 0
                                          to 1 after division by the line's largest; `current` is a place among the steps, or -1
*/
(() => {
  const WIDTH = 240;
  const HEIGHT = 44;
  const EDGE = 5;
  const drawn = (tag, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };

  treegrpo.chart = (steps, lines, current) => {
    const [first, last] = [steps[0], steps[steps.length - 1]];
    const x = (k) => EDGE + ((WIDTH - 2 * EDGE) * (steps[k] - first)) / (last - first || 1);
    const svg = drawn("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, width: WIDTH, height: HEIGHT, role: "img" });
    svg.setAttribute("aria-label", `${lines.map((line) => line.name).join(" and ")} over steps ${first} to ${last}`);
    if (current >= 0) svg.append(drawn("line", { class: "now", x1: x(current), x2: x(current), y1: 0, y2: HEIGHT }));
    lines.forEach((line, place) => {
      const most = Math.max(...line.values.filter((value) => value !== null), 0) || 1;
      const y = (value) => HEIGHT - EDGE - ((HEIGHT - 2 * EDGE) * value) / most;
      let path = "";
      let isDrawing = false;
      line.values.forEach((value, k) => {
        if (value !== null) path += `${isDrawing ? "L" : "M"}${x(k).toFixed(1)} ${y(value).toFixed(1)}`;
        isDrawing = value !== null;
      });
      svg.append(drawn("path", { class: `line line-${place}`, d: path || "M0 0" }));
      const value = line.values[current] ?? null;
      if (value !== null) svg.append(drawn("circle", { class: `dot-${place}`, cx: x(current), cy: y(value), r: 3 }));
    });
    return svg;
  };
})();
