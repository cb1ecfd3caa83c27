"""Who makes a request, and what they may do. Roles are of the whole platform; membership is of a project.

| role | may |
|---|---|
| viewer | read what their projects have, and what is everyone's |
| member | also: add models, scan, deploy in projects where they are member or manager |
| operator | also: see and work in every project, register and delete clusters |
| admin | everything, people and overrides included |

A key may narrow its user: by scopes, and to one project.
"""

from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import ColumnElement, or_, true
from sqlalchemy.orm import QueryableAttribute

from shared.errors import Problem

ORDER = ("viewer", "member", "operator", "admin")
SCOPES = ("read", "write", "inference")


@dataclass(frozen=True, slots=True)
class Caller:
    user_id: UUID
    name: str
    role: str
    key_id: UUID
    scopes: frozenset[str]
    projects: dict[UUID, str] = field(default_factory=dict)  # memberships: manager, member, viewer
    only_project: UUID | None = None  # of the key
    address: str | None = None

    def is_at_least(self, role: str) -> bool:
        return ORDER.index(self.role) >= ORDER.index(role)

    def require(self, role: str) -> None:
        """Problem `forbidden` unless the caller has this role or a higher one."""
        if not self.is_at_least(role):
            raise Problem("forbidden", f"This needs the role {role}; yours is {self.role}.")

    def require_scope(self, scope: str) -> None:
        if scope not in self.scopes:
            raise Problem("forbidden", f"This key does not have the scope {scope}.")

    def require_unbound(self) -> None:
        """Problem `forbidden` for a key that is bound to one project, where something is everyone's."""
        if self.only_project is not None:
            raise Problem("forbidden", "This key is bound to one project, and this belongs to none.")

    # ---- projects

    def sees(self, project_id: UUID | None) -> bool:
        """Whether what belongs to the project (None: to everyone) may be read."""
        if project_id is None:
            return True
        if self.only_project is not None and project_id != self.only_project:
            return False
        return self.is_at_least("operator") or project_id in self.projects

    def works_in(self, project_id: UUID | None) -> bool:
        """Whether what belongs to the project may be made and changed."""
        if not self.sees(project_id) or not self.is_at_least("member"):
            return False
        if project_id is None or self.is_at_least("operator"):
            return self.only_project is None or project_id == self.only_project
        return self.projects.get(project_id) in ("manager", "member")

    def manages(self, project_id: UUID) -> bool:
        return self.sees(project_id) and (self.role == "admin" or self.projects.get(project_id) == "manager")

    def check_sees(self, project_id: UUID | None, what: str) -> None:
        """`not_found`, the same as for what is not there."""
        if not self.sees(project_id):
            raise Problem("not_found", f"There is no such {what}.")

    def check_works_in(self, project_id: UUID | None, what: str, owner_id: UUID | None = None) -> None:
        """`not_found` for what they may not see; `forbidden` by role; `not_owner` for what they may only read."""
        self.check_sees(project_id, what)
        self.require("member")
        is_own = project_id is not None or owner_id in (None, self.user_id) or self.is_at_least("operator")
        if self.works_in(project_id) and is_own:
            return
        raise Problem("not_owner", f"This {what} belongs to someone else.")

    def check_runs(self, project_id: UUID | None, owner_id: UUID | None, what: str) -> None:
        """Whether they may cancel or retry work that goes on: whoever started it, and operators, who look after it.

        `forbidden` by role, `not_owner` for what they may only read.
        """
        self.require("member")
        if not self.works_in(project_id) or not (owner_id == self.user_id or self.is_at_least("operator")):
            raise Problem("not_owner", f"This {what} belongs to someone else; ask them, or an operator.")

    def visible(self, column: QueryableAttribute[UUID] | QueryableAttribute[UUID | None]) -> ColumnElement[bool]:
        """The SQL condition for rows whose project the caller may see."""
        if self.only_project is not None:
            return (
                or_(column.is_(None), column == self.only_project) if self.sees(self.only_project) else column.is_(None)
            )
        if self.is_at_least("operator"):
            return true()
        return or_(column.is_(None), column.in_(list(self.projects)))
