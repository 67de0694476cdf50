@reference
@with -f raw
@name blkverify:reference:image
write -P 5 100 100
@img compare -f raw -F raw blkverify:reference:image image
@img convert -f raw -O raw blkverify:reference:image image
