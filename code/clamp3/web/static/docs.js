// Lists the operations of openapi.json.

const make = (name, textContent) => Object.assign(document.createElement(name), { textContent });
const { paths, components } = await (await fetch("/openapi.json")).json();

function fields(operation) {
  const named = (operation.parameters || []).map((one) => [one.name, one.schema, one.required]);
  for (const { schema } of Object.values(operation.requestBody?.content || {})) {
    const body = schema.$ref ? components.schemas[schema.$ref.split("/").pop()] : schema;
    for (const [name, one] of Object.entries(body.properties || {})) named.push([name, one, (body.required || []).includes(name)]);
  }
  return named.map(([name, one, isRequired]) => {
    const kind = (one.anyOf || [one]).map((part) => part.enum?.join("|") || part.type).filter((type) => type !== "null");
    const preset = one.default === undefined || one.default === null ? "" : `, default ${one.default}`;
    return make("li", `${name}: ${kind.join(" or ")}${isRequired ? ", needed" : preset}`);
  });
}

for (const [path, operations] of Object.entries(paths)) {
  for (const [method, operation] of Object.entries(operations)) {
    const list = document.createElement("ul");
    list.append(...fields(operation));
    document.querySelector("#operations").append(
      make("h2", `${method.toUpperCase()} ${path}`), make("p", operation.description || ""), list,
    );
  }
}
