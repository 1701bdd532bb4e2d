from ._explore import explore as explore
