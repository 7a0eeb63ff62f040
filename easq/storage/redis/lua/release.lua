-- flags: allow-oom; after: context entries groups filters consumers retention failures dispatch stream
-- Releases the items ARGV[5] and on that are claimed under the name ARGV[4]; without items, all that are claimed under
-- it.

local S = stream.begin()
if not S then
  return {'gone'}
end
if #ARGV == 4 then
  stream.release_claims(S, ARGV[4])
end
for place = 5, #ARGV do
  if call('HGET', S.p .. 'claims', ARGV[place]) == ARGV[4] then
    stream.release(S, ARGV[place])
  end
end
dispatch.all(S)
return stream.finish(S, 'ok', 0)
