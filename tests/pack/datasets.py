"""A dataset in the format of the TU collection, without the name in front of its files."""

TU = {
    # Two graphs: a triangle of nodes 1 to 3, and a path of nodes 4 and 5.
    "A.txt": "1, 2\n2, 1\n2, 3\n3, 2\n3, 1\n1, 3\n4, 5\n5, 4\n",
    "graph_indicator.txt": "1\n1\n1\n2\n2\n",
    "graph_labels.txt": "1\n-1\n",
    "node_labels.txt": "0\n1\n2\n0\n1\n",
}
