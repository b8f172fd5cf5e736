// The texts on the page whose contrast with their ground is below what WCAG 2.1, 1.4.3 asks for.
const channel = (value) => { const part = value / 255; return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4; };
const light = ([red, green, blue]) => 0.2126 * channel(red) + 0.7152 * channel(green) + 0.0722 * channel(blue);
const colour = (text) => { const found = text.match(/[\d.]+/g).map(Number); return found.length < 4 || found[3] > 0 ? found : null; };
const ground = (element) => {
  for (let each = element; each; each = each.parentElement) {
    const found = colour(getComputedStyle(each).backgroundColor);
    if (found) return found;
  }
  return [255, 255, 255];
};
const faint = [];
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
  if (!own || !element.getClientRects().length || element.closest("svg, .unseen, .skip")) continue;
  const style = getComputedStyle(element);
  const [one, other] = [light(colour(style.color) || [0, 0, 0]), light(ground(element))].sort((a, b) => b - a);
  const contrast = (one + 0.05) / (other + 0.05);
  if (contrast < 4.5) faint.push([element.textContent.trim().slice(0, 40), style.color, contrast.toFixed(2)]);
}
return faint;
