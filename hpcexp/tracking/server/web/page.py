"""MLflow's page without what is not served: the assistant, the gateway, and the pages for language models."""

from __future__ import annotations

import json
from pathlib import Path

_BEFORE = "</head>"
_HIDDEN = (
    "[data-assistant-ui]",
    # The switch to the pages for language models.
    'aside :has(> [role="button"]:not(button))',
    'a[href*="/traces"]',
    # The tab of a run's traces.
    'button[role="tab"][id$="-trigger-evaluations"]',
    'a[href^="#/settings/llm-connections"]',
    'a[href^="#/settings/webhooks"]',
    '[data-component-id^="mlflow.home.telemetry"]',
    'section:has([data-component-id^="mlflow.home.demo"])',
    '[data-component-id^="mlflow.settings.telemetry"]',
    '[data-component-id^="mlflow.settings.demo"]',
)
_SET = {
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": True,
    "mlflow.assistant.panelOpen_v1": False,
    "mlflow.workflowType_v1": "machine_learning",
}
"""What the browser remembers, by the interface's own names."""


_FETCH = """
const ask = window.fetch
window.fetch = (what, ...more) => String(what.url ?? what).includes("/mlflow/gateway-proxy")
  ? Promise.resolve(new Response('{"endpoints": []}', {headers: {"Content-Type": "application/json"}}))
  : ask(what, ...more)
"""
"""The list of runs asks for the gateway's endpoints, and would show that there is no gateway as an error."""


def page(index: Path) -> str:
    """The page that starts MLflow's interface, of its `index.html`."""
    html = index.read_text()
    head, found, rest = html.partition(_BEFORE)
    if not found:
        raise ValueError(f"{index} has no {_BEFORE}")
    stored = "".join(f"localStorage.setItem({json.dumps(k)}, {json.dumps(json.dumps(v))});" for k, v in _SET.items())
    # Heavier than the page's own rules, some of which are !important too.
    style = ", ".join(f":root body {selector}" for selector in _HIDDEN) + " { display: none !important; }"
    return f"{head}<style>{style}</style><script>{stored}{_FETCH}</script>{found}{rest}"
