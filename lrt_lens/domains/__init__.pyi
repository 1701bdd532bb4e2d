from ._domain_matrix import DomainMatrix as DomainMatrix
from ._domain_matrix import DomainSettings as DomainSettings
from ._domain_matrix import domain_matrix as domain_matrix
from ._domain_tasks import DomainTask as DomainTask
