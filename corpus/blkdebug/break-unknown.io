@with -f raw
break l2_updtae A
resume A
remove_break A
