// What the console does beyond plain pages: nothing that it cannot do without.
"use strict";

(() => {
  // A choice that sends its form by itself needs no button for it.
  document.querySelectorAll("[data-submit]").forEach((control) => {
    control.addEventListener("change", () => control.form.requestSubmit());
  });
  document.querySelectorAll("[data-without-script]").forEach((control) => { control.hidden = true; });

  // A form that was sent is not sent again by a second click.
  document.addEventListener("submit", (event) => {
    const button = event.submitter;
    if (button && event.target.method === "post") setTimeout(() => { button.disabled = true; }, 0);
  });
  // A page that comes back from the history of the browser has its buttons again.
  addEventListener("pageshow", () => {
    document.querySelectorAll("button[disabled]:not([data-disabled])").forEach((button) => { button.disabled = false; });
  });

  // "All" ticks the rows of its table.
  document.addEventListener("change", (event) => {
    if (!event.target.matches("[data-tick-all]")) return;
    const rows = event.target.closest("form, table").querySelectorAll("tbody input[type=checkbox]");
    rows.forEach((row) => { row.checked = event.target.checked; });
  });

  // How long ago something was goes on while the page stands.
  const spans = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const words = (s) => {
    if (s < 10) return `${s.toFixed(1)} s`;
    const at = spans.findIndex(([size]) => s >= size);
    const [size, unit] = spans[at];
    const count = Math.floor(s / size);
    const lesser = unit === "s" || count >= 100 ? 0 : Math.floor((s % size) / spans[at + 1][0]);
    return lesser ? `${count} ${unit} ${lesser} ${spans[at + 1][1]}` : `${count} ${unit}`;
  };
  const tick = () => {
    if (document.hidden) return;
    document.querySelectorAll("time[datetime]").forEach((time) => {
      const past = (Date.now() - Date.parse(time.dateTime)) / 1000;
      if (Number.isNaN(past)) return;
      time.textContent = Math.abs(past) < 1 ? "now" : past > 0 ? `${words(past)} ago` : `in ${words(-past)}`;
    });
  };
  setInterval(tick, 5000);
})();
