-- flags: no-writes; after: context entries groups consumers
-- Answers the parts of the dead letter of the item ARGV[5] of the group ARGV[4]: {tags, data, deliveries, failures,
-- code, reason}; false when no dead letter is needed any more.

local S = open_stream(PREFIX)
if not S then
  return {'gone'}
end
local id, G = ARGV[5], groups.get(S, ARGV[4])
if not G or call('HEXISTS', S.p .. 'doom', ARGV[4] .. '\0' .. id) == 0 or not entries.present(S, id) then
  return {'ok', false}
end
local why = cmsgpack.unpack(call('HGET', G.g .. 'why', id))
return {'ok', {
  string.sub(entries.head(S, id), 9), call('HGET', S.p .. 'data', id), tonumber(call('HGET', G.g .. 'deliv', id) or 0),
  groups.failures(G, id), why[1], why[2],
}}
