"""Organizations, as the region's catalog has them."""

from __future__ import annotations

from skerry.machines.v1 import organizations_pb2 as api
from skerry.store.v1.catalog_pb2 import OrganizationRecord

from gateway.apps import Catalog
from services.runtime.errors import NotFound

PERSONAL_TYPE = "PERSONAL"
BILLING_STATUS = "CURRENT"


def get_organization(catalog: Catalog, slug: str) -> api.Organization:
    """One organization. Raises NotFound, also for one that the token does not reach."""
    found = catalog.reached_organization(slug)
    if found is None:
        raise NotFound(f"there is no organization {slug[:64]!r} that this token reaches")
    return api.Organization(
        id=found.id,
        internal_numeric_id=found.internal_numeric_id,
        slug=found.slug,
        raw_slug=found.slug,
        name=found.name,
        personal=is_personal(found),
        paid_plan=found.paid_plan,
        billable=True,
        billing_status=BILLING_STATUS,
    )


def is_personal(organization: OrganizationRecord) -> bool:
    """It is one person's."""
    return organization.type == PERSONAL_TYPE
