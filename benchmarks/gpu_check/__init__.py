"""Does what was built without a GPU hold on one? 18 checks in eight minutes."""
