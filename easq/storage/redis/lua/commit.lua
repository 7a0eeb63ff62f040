-- flags: allow-oom; after: stream entries groups members handout rules
-- Commits the items ARGV[5] and on for the group ARGV[4]; removes those that no other group retains.
-- Answers how many were present and not yet committed.

local S = rules.begin()
if not S then
  return {'gone'}
end
rules.affirm(S)
local named, met = {}, {}
for place = 5, #ARGV do
  if not met[ARGV[place]] then
    named[#named + 1] = ARGV[place]
    met[ARGV[place]] = true
  end
end
entries.load(S, named)
local present = {}
for _, id in ipairs(named) do
  if entries.present(S, id) then
    present[#present + 1] = id
  end
end
if #present == 0 then
  return rules.finish(S, 'ok', 0)
end
local G = groups.make(S, ARGV[4])

-- Those that are done with this commit, and those that another group still holds back
local gone, kept, has_some = {}, {}, call('EXISTS', G.g .. 'done') == 1
for _, id in ipairs(present) do
  if not has_some or call('SISMEMBER', G.g .. 'gone', id) == 1 or not groups.has_done(G, id) then
    table.insert(groups.holder(S, id, G) == groups.NOBODY and gone or kept, id)
  end
end

in_parts(kept, function(part)
  members.take_away(G, part)
end)
for _, id in ipairs(kept) do
  groups.unhold(G, id)
  groups.undoom(G, id)
  if G.marks then
    call('HDEL', G.g .. 'by', id)
  end
  call('ZADD', G.g .. 'done', 0, entries.rank(S, id))
  if call('SREM', G.g .. 'gone', id) == 1 then
    call('HDEL', S.p .. 'answers', id .. '\0' .. G.name)
  end
  S.touched = true
end
rules.remove(S, gone)
if groups.is_idle(G) then
  groups.forget(G)
end
handout.dispatch_all(S)
return rules.finish(S, 'ok', #gone + #kept)
