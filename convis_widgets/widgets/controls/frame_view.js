// The page's half of FrameView: the newest image on a canvas, marks over it, zooming, and what the pointer does.
//
// An image is acknowledged once it is drawn, at most one per animation frame. A view that nobody sees says so, draws
// nothing, and draws the newest image when it is seen again.

const HOVER_PERIOD = 40; // milliseconds between two reports of a moving pointer
const MAX_ZOOM = 32;
const DRAG_PIXELS = 4; // a pointer that moves further does not click
const EVENTS = {
  click: "click", pointermove: "move", pointerleave: "leave", pointercancel: "leave",
  pointerdown: "press", pointerup: "release", wheel: "wheel",
};

// The views of this page by their key: sets of functions that mark a box. It is shared by all copies of this module.
const views = (globalThis.convisViews ??= new Map());

function render({ model, el }) {
  const box = el.appendChild(document.createElement("div"));
  const [image, overlay] = [0, 1].map(() => box.appendChild(document.createElement("canvas")));
  const [pixels, marks] = [image.getContext("2d"), overlay.getContext("2d")];
  box.className = "convis-view";
  box.setAttribute("role", "img");
  for (const canvas of [image, overlay]) canvas.setAttribute("aria-hidden", "true");

  let displayed = -1, decoding = false, drawnInThisFrame = false, inView = true, alive = true;
  let zoom = { scale: 1, x: 0, y: 0 };
  let hovered = null, clicked = null, pointedAt = null; // marks that the page makes by itself
  let pressed = null, dragged = false;

  // -- the image

  const isSeen = () => alive && inView && !document.hidden;

  async function draw() {
    if (decoding) return;
    decoding = true;
    while (isSeen() && displayed !== model.get("serial") && model.get("value")?.byteLength) {
      const serial = model.get("serial");
      // damaged data is acknowledged too, otherwise the stream would wait for it
      const bitmap = await createImageBitmap(new Blob([model.get("value")])).catch(() => null);
      if (bitmap) {
        if (drawnInThisFrame) await new Promise(requestAnimationFrame);
        const isResized = displayed < 0 || image.width !== bitmap.width || image.height !== bitmap.height;
        if (isResized) [image.width, image.height] = [bitmap.width, bitmap.height];
        else pixels.clearRect(0, 0, image.width, image.height);
        pixels.drawImage(bitmap, 0, 0);
        bitmap.close();
        drawnInThisFrame = true;
        requestAnimationFrame(() => { drawnInThisFrame = false; });
        displayed = serial;
        if (isResized) layOut();
      }
      displayed = serial;
      model.send({ painted: serial });
    }
    decoding = false;
  }

  function size() {
    const [height, width] = model.get("size");
    return { height, width };
  }

  function layOut() {
    const { height, width } = size(), ratio = devicePixelRatio;
    box.style.width = `${width}px`;
    box.style.height = `${height}px`;
    box.style.visibility = displayed < 0 ? "hidden" : "";
    image.style.imageRendering = width * zoom.scale > image.width ? "pixelated" : "auto";
    image.style.transform = `translate(${zoom.x}px, ${zoom.y}px) scale(${zoom.scale})`;
    [overlay.width, overlay.height] = [Math.round(width * ratio), Math.round(height * ratio)];
    drawMarks();
  }

  // -- marks: rectangles around boxes (top, left, bottom, right), as wide at any zoom

  function drawMarks() {
    const ratio = devicePixelRatio;
    marks.setTransform(ratio, 0, 0, ratio, 0, 0);
    marks.clearRect(0, 0, overlay.width, overlay.height);
    const fromKernel = model.get("marks").filter((mark) => !(clicked && mark.selection));
    for (const mark of [...fromKernel, clicked, hovered, pointedAt]) {
      if (!mark) continue;
      const [top, left, bottom, right] = mark.box.map((edge, i) => edge * zoom.scale + (i % 2 ? zoom.x : zoom.y));
      for (const [color, width] of [["rgba(0, 0, 0, 0.8)", 4], [mark.color ?? "#ff40a0", 2]]) {
        marks.strokeStyle = color;
        marks.lineWidth = width;
        marks.strokeRect(left - 1, top - 1, right - left + 2, bottom - top + 2);
      }
    }
  }

  function tileAt({ x, y }) {
    const { tile, gap, columns, count } = model.get("tiles");
    if (!count) return null;
    const [height, width] = tile.map((side) => side + gap);
    const [row, column] = [Math.floor(y / height), Math.floor(x / width)];
    if (column < 0 || column >= columns || row < 0 || row * columns + column >= count) return null;
    return { row, column, box: [row * height + gap, column * width + gap, (row + 1) * height, (column + 1) * width] };
  }

  // The tile under the pointer, and its counterpart in a linked view, are marked here, without the kernel.
  function hover(position) {
    const tile = position && tileAt(position);
    if (String(tile?.box) === String(hovered?.box)) return;
    hovered = tile && { box: tile.box, color: "#fff" };
    drawMarks();
    const { key, rows, columns } = model.get("linked");
    if (!key) return;
    const mark = tile && { box: [rows[tile.row][0], columns[tile.column][0], rows[tile.row][1], columns[tile.column][1]], color: "#fff" };
    for (const point of views.get(key) ?? []) point(mark);
  }

  function pointAt(mark) {
    pointedAt = mark;
    drawMarks();
  }

  function onHandled() { // the kernel has set its own marks
    clicked = null;
    drawMarks();
  }

  // -- zoom: Ctrl (or a pinch) and the wheel; once enlarged, the wheel alone; drag to pan; a double click resets

  function zoomTo(scale, x, y) {
    const { height, width } = size();
    scale = Math.min(Math.max(scale, 1), MAX_ZOOM);
    const clamp = (offset, length) => Math.min(0, Math.max(length * (1 - scale), offset));
    zoom = { scale, x: clamp(x, width), y: clamp(y, height) };
    layOut();
  }

  function zoomByWheel(event) {
    if (!(event.ctrlKey || event.metaKey || zoom.scale > 1)) return;
    event.preventDefault();
    const { x, y } = position(event);
    const scale = Math.min(Math.max(zoom.scale * 1.0015 ** -event.deltaY, 1), MAX_ZOOM);
    zoomTo(scale, zoom.x + x * (zoom.scale - scale), zoom.y + y * (zoom.scale - scale));
  }

  // -- the pointer

  function position(event) { // in pixels of the view, as if it were not enlarged
    const rectangle = box.getBoundingClientRect(), { height, width } = size();
    const x = (event.clientX - rectangle.left) * (width / rectangle.width);
    const y = (event.clientY - rectangle.top) * (height / rectangle.height);
    return { x: (x - zoom.x) / zoom.scale, y: (y - zoom.y) / zoom.scale };
  }

  let lastReport = 0, nextReport = 0;
  function report(type, event) {
    const { buttons, shiftKey, ctrlKey, altKey, metaKey, deltaY } = event;
    const message = { event: { type, ...position(event), buttons, shiftKey, ctrlKey, altKey, metaKey, deltaY } };
    clearTimeout(nextReport);
    if (type !== "move") return model.send(message);
    const wait = Math.max(0, HOVER_PERIOD - performance.now() + lastReport);
    nextReport = setTimeout(() => { lastReport = performance.now(); model.send(message); }, wait);
  }

  function onPointer(event) {
    const type = EVENTS[event.type], watched = model.get("watched"), isGesture = watched.includes("press");
    if (type === "press") {
      pressed = { clientX: event.clientX, clientY: event.clientY, zoom };
      dragged = false;
      if (isGesture || zoom.scale > 1) box.setPointerCapture(event.pointerId);
    }
    if (type === "move") {
      hover(position(event));
      if (pressed && !isGesture) {
        const [dx, dy] = [event.clientX - pressed.clientX, event.clientY - pressed.clientY];
        dragged ||= Math.hypot(dx, dy) > DRAG_PIXELS;
        if (dragged && zoom.scale > 1) return zoomTo(zoom.scale, pressed.zoom.x + dx, pressed.zoom.y + dy);
      }
    }
    if (type === "release" || type === "leave") pressed = null;
    if (type === "leave") hover(null);
    if (type === "wheel") {
      if (!isGesture) return zoomByWheel(event);
      if (event.ctrlKey) return; // the page's own zoom
      event.preventDefault();
    }
    if (type === "click") {
      if (dragged && zoom.scale > 1) return;
      const tile = watched.includes("click") && tileAt(position(event));
      if (tile) {
        clicked = { box: tile.box };
        drawMarks();
      }
    }
    if (watched.includes(type)) report(type, event);
  }
  for (const name of Object.keys(EVENTS)) box.addEventListener(name, onPointer, { passive: false });
  box.addEventListener("dblclick", () => zoom.scale > 1 && zoomTo(1, 0, 0));

  // -- life

  function describe() {
    box.setAttribute("aria-label", model.get("alt"));
    box.style.touchAction = model.get("watched").includes("press") ? "none" : "manipulation";
  }
  function onSeen() {
    model.send({ seen: isSeen() });
    draw();
  }
  const observer = new IntersectionObserver((entries) => {
    const before = inView;
    inView = entries.at(-1).isIntersecting;
    if (inView !== before || inView) onSeen();
  });
  const key = model.get("key");
  if (!views.has(key)) views.set(key, new Set());
  views.get(key).add(pointAt);
  const listeners = { "change:serial": draw, "change:size": () => zoomTo(zoom.scale, zoom.x, zoom.y), "change:marks": drawMarks, "msg:custom": onHandled, "change:alt": describe };
  for (const [name, listener] of Object.entries(listeners)) model.on(name, listener);
  document.addEventListener("visibilitychange", onSeen);
  observer.observe(box);
  describe();
  layOut();
  draw();
  return () => {
    alive = false;
    clearTimeout(nextReport);
    observer.disconnect();
    views.get(key).delete(pointAt);
    document.removeEventListener("visibilitychange", onSeen);
    for (const [name, listener] of Object.entries(listeners)) model.off(name, listener);
    model.send({ seen: false });
  };
}

export default { render };
