// Asks the server. What it answers, or an error with its reason.
export async function ask(address, options) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(said.error ? said.error.message : `The server failed (${answer.status}).`);
  return said;
}
