"""What a basis keeps of adapters and tasks, in numbers, on one page: measure, then results, then rendering."""
