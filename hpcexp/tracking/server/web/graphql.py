"""What MLflow's pages ask by GraphQL, and nothing else of its schema."""

from __future__ import annotations

FIELDS = frozenset(
    (
        "mlflowGetExperiment",
        "mlflowGetRun",
        "mlflowSearchRuns",
        "mlflowGetMetricHistoryBulkInterval",
        "mlflowListArtifacts",
        "mlflowSearchModelVersions",
    )
)
"""Queries that are answered. They only read; `tests/unit/tracking/test_routes.py` compares them with MLflow's."""


def keep_queries() -> None:
    """Have MLflow's schema answer the queries of `FIELDS` alone, and change nothing."""
    from mlflow.server.graphql.graphql_schema_extensions import schema

    known = schema.graphql_schema
    assert known.query_type is not None
    for name in known.query_type.fields.keys() - FIELDS:
        del known.query_type.fields[name]
    known.mutation_type = known.subscription_type = None
