@reference
@with -f raw
@name image
write -P 5 100 100
@img convert -f raw -O raw blkverify:reference:image out
@img compare -f raw -F raw blkverify:reference:image image
