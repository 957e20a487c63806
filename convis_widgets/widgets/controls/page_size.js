// The page's half of PageSize: tells the kernel how wide the place of a widget is.

const PERIOD = 150; // milliseconds without a change, before the kernel is told

function render({ model, el }) {
  el.style.height = "0";
  el.style.margin = "0";
  let pending = 0;
  const observer = new ResizeObserver(() => {
    clearTimeout(pending);
    pending = setTimeout(() => {
      const width = Math.floor(el.getBoundingClientRect().width);
      if (width === 0 || width === model.get("width")) return; // not displayed now, or known
      model.set("width", width);
      model.save_changes();
    }, PERIOD);
  });
  observer.observe(el);
  return () => {
    clearTimeout(pending);
    observer.disconnect();
  };
}

export default { render };
